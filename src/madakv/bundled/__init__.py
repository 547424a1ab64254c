"""A small real vision-language model and a sample document, to try everything offline; and where larger ones are.

`model` (2.6 M parameters) is transformers' own Llava, trained on `madakv.evaluation.digits` by
`training/bundled/train.py`. `small-llava` and `small-qwen2.5-vl` (5 M each) read the long documents of
`madakv.evaluation.documents`; `training/small/train_small.py` made them. `small-smolvlm` reads them in plain English,
with a published language model (`madakv.assembled`, `training/smolvlm`). They are not part of the package, and lie in
the repository's folder `models`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from madakv.errors import ConfigurationError
from madakv.question import Question

if TYPE_CHECKING:
    from PIL import Image
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

_HERE = Path(__file__).parent
NAMES = {
    "small-llava": "trained here for the suite's long documents: text and pictures, 6 layers (Apache-2.0)",
    "small-qwen2.5-vl": "the same with pictures of several sizes, 6 layers (Apache-2.0)",
    "small-smolvlm": "the same in English: eyes and a LoRA for smollm2, which it needs, 30 layers (Apache-2.0)",
}
"""The models for evaluation, which can be asked for by name; what each is, in one line."""
MODELS_VARIABLE = "MADAKV_MODELS"
"""The environment variable that names their folder."""


@dataclass(frozen=True)
class Sample:
    """A held-out document: `text` has one `<image>` mark per image, and every kind of question once."""

    text: str
    images: tuple[Image.Image, ...]
    questions: tuple[Question, ...]

    @property
    def demo(self) -> Question:
        """The question to show first: a picture by its name, which stands in the text."""
        return next(question for question in self.questions if question.kind == "show")


def model_path() -> Path:
    """The folder to give to `from_pretrained`."""
    return _HERE / "model"


def models_folder() -> Path:
    """Where the models of `NAMES` are looked for: MADAKV_MODELS if it is set, else `models` of a checkout."""
    return Path(os.environ.get(MODELS_VARIABLE) or _HERE.parents[2] / "models")


def named() -> dict[str, Path]:
    """Folders of the models that can be asked for by name and are there."""
    folders = {name: models_folder() / name for name in NAMES}
    return {name: folder for name, folder in folders.items() if (folder / "config.json").is_file()}


def folder_of(name: str) -> Path:
    """The folder of one of `NAMES`.

    Raises:
        ConfigurationError: it is not there; the message says where it is.
    """
    found = named().get(name)
    if found is None:
        raise ConfigurationError(
            f"{name} does not come with the package, and is not in {models_folder()}: it is in the folder "
            f"models/{name} of madakv's repository; clone that, and pass the folder's path or set "
            f"{MODELS_VARIABLE} to its models folder"
        )
    return found


def load() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The model (fp32, evaluation mode) and its processor."""
    import torch
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    model = LlavaForConditionalGeneration.from_pretrained(model_path(), dtype=torch.float32)
    return model.train(False), LlavaProcessor.from_pretrained(model_path())


def sample() -> Sample:
    """The built-in document of 12 pictures, whose questions the full cache answers right."""
    from PIL import Image

    folder = _HERE / "sample"
    described = json.loads((folder / "sample.json").read_text())
    images = []
    for name in described["images"]:
        with Image.open(folder / name) as opened:
            images.append(opened.convert("RGB"))
    questions = tuple(Question(**asked) for asked in described["questions"])
    return Sample(described["text"], tuple(images), questions)
