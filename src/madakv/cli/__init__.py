"""The `madakv` command."""

from madakv.cli.app import main

__all__ = ["main"]
