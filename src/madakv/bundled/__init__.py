"""Small real vision-language models and a sample document, to try everything offline.

`model` (2.6 M parameters) is transformers' own Llava, trained on `madakv.evaluation.digits` by
`training/bundled/train.py`. `small-llava` and `small-qwen2.5-vl` (5 M each) read the long documents of
`madakv.evaluation.documents`; `training/small/train_small.py` made them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    from madakv.evaluation.digits import Question

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Sample:
    """A held-out document: `text` has one `<image>` mark per image, and every kind of question once."""

    text: str
    images: tuple[Image.Image, ...]
    questions: tuple[Question, ...]

    @property
    def demo(self) -> Question:
        """The question to show first: a fact in the text leads to a picture far from it."""
        return next(question for question in self.questions if question.kind == "owner")


def model_path() -> Path:
    """The folder to give to `from_pretrained`."""
    return _HERE / "model"


def named() -> dict[str, Path]:
    """Folders of the models that can be asked for by name."""
    return {folder.parent.name: folder.parent for folder in sorted(_HERE.glob("small-*/config.json"))}


def load() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The model (fp32, evaluation mode) and its processor."""
    import torch
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    model = LlavaForConditionalGeneration.from_pretrained(model_path(), dtype=torch.float32)
    return model.train(False), LlavaProcessor.from_pretrained(model_path())


def sample() -> Sample:
    """The built-in document of 12 pictures, whose questions the full cache answers right."""
    from PIL import Image

    from madakv.evaluation.digits import Question

    folder = _HERE / "sample"
    described = json.loads((folder / "sample.json").read_text())
    images = []
    for name in described["images"]:
        with Image.open(folder / name) as opened:
            images.append(opened.convert("RGB"))
    questions = tuple(Question(**asked) for asked in described["questions"])
    return Sample(described["text"], tuple(images), questions)
