"""`python -m madakv`, where the command is not installed."""

from madakv.cli.app import main

main()
