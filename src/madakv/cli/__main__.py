"""`python -m madakv.cli`, where the installed command is not on the path."""

from madakv.cli import main

main()
