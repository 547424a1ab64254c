"""Task folders for lmms-eval's `--include_path`."""
