"""`python -m madakv`, where the command is not installed, and `torchrun ... -m madakv eval ...`."""

from madakv.cli.app import main

main()
