"""Write a small, complete data set in MileBench's format.

python scripts/make_milebench_sample.py --out /tmp/milebench
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from madakv.errors import ConfigurationError
from madakv.evaluation.milebench import DATASETS, make_sample


def main() -> int:
    """Write it; 1 if the options cannot be meant so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="an empty folder, or one to be made")
    parser.add_argument("--per-dataset", type=int, default=4, help="samples of each dataset (4)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is left to chance (0)")
    arguments = parser.parse_args()
    try:
        make_sample(arguments.out, per_dataset=arguments.per_dataset, seed=arguments.seed)
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(DATASETS)} datasets of {arguments.per_dataset} samples in {arguments.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
