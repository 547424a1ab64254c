"""`python -m madakv`, where the command is not installed."""

from madakv.cli import main

if __name__ == "__main__":
    main()
