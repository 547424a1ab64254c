"""The model `madakv` of lmms-eval, and the folder of the tasks that come with it.

lmms-eval finds `manifest` through the entry point group `lmms_eval.models`. Nothing else of lmms-eval is imported
here: it reads its entry points while it is itself only half imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def manifest() -> Any:
    """What lmms-eval registers: the name of the model, and where its class is."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="madakv", chat_class_path=f"{__name__}.model.MadaKV")


def tasks_folder() -> Path:
    """What to give to lmms-eval's `--include_path`."""
    return Path(__file__).parents[1] / "lmms_eval_tasks"
