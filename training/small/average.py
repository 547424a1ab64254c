"""Average the weights of models of one training run: each misses other answers, their mean may miss fewer.

    python training/small/average.py FOLDER FOLDER --out DIR

The mean of weights along one path of training generalises better than its end (Izmailov et al. 2018, "Averaging
Weights Leads to Wider Optima and Better Generalization").
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def average(folders: list[Path], out: Path) -> None:
    """Write the first model with the mean of all weights; they have the same names and shapes."""
    models = [load_file(folder / "model.safetensors") for folder in folders]
    mean = {
        name: torch.stack([model[name].double() for model in models]).mean(0).to(weight.dtype)
        for name, weight in models[0].items()
    }
    shutil.copytree(folders[0], out, dirs_exist_ok=True)
    save_file(mean, out / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Read the command line and average."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="trained models")
    parser.add_argument("--out", type=Path, required=True, help="folder of the mean")
    arguments = parser.parse_args()
    average(arguments.folders, arguments.out)


if __name__ == "__main__":
    main()
