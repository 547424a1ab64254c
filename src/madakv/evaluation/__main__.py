"""The commands as a module, for torchrun: `torchrun --nproc_per_node n -m madakv.evaluation milebench ...`."""

from madakv.cli import main

if __name__ == "__main__":
    main()
