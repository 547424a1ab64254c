"""The bundled model's own document in MileBench's layout, so that some answers are right and some are wrong."""

from __future__ import annotations

import json
from pathlib import Path

from madakv import bundled
from madakv.evaluation.milebench.catalogue import DATASETS

CHOICES = ("red 7", "blue 3", "green 8", "cyan 1")


def write_documents(root: Path, names: tuple[str, ...]) -> None:
    """Write datasets of the given folder names, each with every question about the document."""
    sample = bundled.sample()
    pieces = sample.text.split("<image>")
    context = "".join(f"{piece}{{image#{number}}}" for number, piece in enumerate(pieces[:-1], 1)) + pieces[-1]
    pictures = [f"{number}.png" for number in range(len(sample.images))]
    for name in names:
        images = root / name / "images"
        images.mkdir(parents=True)
        for file, image in zip(pictures, sample.images, strict=True):
            image.save(images / file)
        metric, samples = DATASETS[name].metric, []
        for number, question in enumerate(sample.questions):
            # A needle is one word.
            gold = question.answer.split()[-1] if metric == "needle" else question.answer
            instance = {"context": f"{context} {question.prompt}", "images_path": pictures}
            if metric == "accuracy":
                gold = CHOICES[number % len(CHOICES)]
                instance["choice_list"] = list(CHOICES)
            samples.append(
                {"sample_id": number, "task_instruction_id": 0, "task_instance": instance, "response": gold}
            )
        content = {"meta_data": {"task_instruction": [""], "question_type": "open-ended"}, "data": samples}
        (root / name / f"{name}.json").write_text(json.dumps(content))
