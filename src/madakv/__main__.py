"""`python -m madakv`, where the command is not installed, and `torchrun ... -m madakv eval ...`."""

from madakv.cli import main

if __name__ == "__main__":
    main()
