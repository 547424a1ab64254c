"""MileBench (arXiv 2404.18532): its data read, its prompts written, its pictures opened, without any model.

The data is not part of madakv: users unpack it into a folder (`read`), look at it (`check`), or make a small set of
their own in its format (`make_sample`).
"""

from madakv.evaluation.milebench.catalogue import CATEGORIES, DATASETS, Dataset, Metric, chosen
from madakv.evaluation.milebench.check import DatasetReport, check, check_dataset
from madakv.evaluation.milebench.data import Level, Question, read
from madakv.evaluation.milebench.pictures import open_pictures
from madakv.evaluation.milebench.prompts import Prompt, cut_left, prompt, write
from madakv.evaluation.milebench.sample import make_sample

__all__ = [
    "CATEGORIES",
    "DATASETS",
    "Dataset",
    "DatasetReport",
    "Level",
    "Metric",
    "Prompt",
    "Question",
    "check",
    "check_dataset",
    "chosen",
    "cut_left",
    "make_sample",
    "open_pictures",
    "prompt",
    "read",
    "write",
]
