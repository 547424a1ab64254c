"""The old name of `python -m madakv`, which goes in the next version."""

import runpy
import sys

if __name__ == "__main__":
    print("`-m madakv.evaluation` is now `-m madakv`, and goes in the next version", file=sys.stderr)
    runpy.run_module("madakv", run_name="__main__", alter_sys=True)
