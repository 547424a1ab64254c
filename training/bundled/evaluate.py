"""Whole-answer accuracy of an exported model with its full cache, by plain greedy `generate`.

    python training/bundled/evaluate.py [--model DIR] [--documents 200] [--images 12] [--sample DIR]

Documents are numbers 0 and up of the held-out split: digits that training never saw.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from madakv import bundled
from madakv.evaluation.digits import KINDS, Document, make_document

BATCH = 20


@torch.no_grad()
def answers(
    # transformers leaves the calls on both untyped.
    model: Any,
    processor: Any,
    documents: Sequence[Document],
    number: int,
) -> list[str]:
    """The model's answer to question `number` of every document."""
    inputs = processor(
        images=[list(document.images) for document in documents],
        text=[f"{document.text} {document.questions[number].prompt}" for document in documents],
        padding=True,
        return_tensors="pt",
    )
    produced = model.generate(**inputs, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    decoded: list[str] = processor.batch_decode(produced, skip_special_tokens=True)
    return decoded


def write_sample(folder: Path, document: Document) -> None:
    """The pictures as PNG files, the rest as `sample.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"image_{i:02d}.png" for i in range(1, len(document.images) + 1)]
    for name, image in zip(names, document.images, strict=True):
        image.save(folder / name)
    questions = [{"kind": q.kind, "prompt": q.prompt, "answer": q.answer} for q in document.questions]
    described = {"text": document.text, "images": names, "questions": questions}
    (folder / "sample.json").write_text(json.dumps(described, indent=2) + "\n")


def main() -> None:
    """Print the scores as a line of JSON and, if asked, write the sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=bundled.model_path())
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--sample", type=Path, help="write the first document that is answered right here")
    arguments = parser.parse_args()
    model = LlavaForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32)
    processor = LlavaProcessor.from_pretrained(arguments.model)

    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    digits: list[bool] = []
    for first in range(0, arguments.documents, BATCH):
        seeds = range(first, min(first + BATCH, arguments.documents))
        documents = [make_document(seed, images=arguments.images) for seed in seeds]
        for number, kind in enumerate(KINDS):
            for document, answer in zip(documents, answers(model, processor, documents, number), strict=True):
                wanted = document.questions[number].answer
                right[kind].append(answer == wanted)
                if kind == "list":
                    digits += [a == b for a, b in zip(answer.split(), wanted.split(), strict=False)]
    scores = {kind: round(sum(hits) / len(hits), 4) for kind, hits in right.items()}
    scores["all"] = round(sum(map(sum, right.values())) / sum(map(len, right.values())), 4)
    print(
        json.dumps(
            {
                "event": "generate",
                "documents": arguments.documents,
                "images": arguments.images,
                **scores,
                "digits of list": round(sum(digits) / len(digits), 4),
            }
        )
    )
    if arguments.sample:
        good = [seed for seed, hits in enumerate(zip(*right.values(), strict=True)) if all(hits)]
        write_sample(arguments.sample, make_document(good[0], images=arguments.images))


if __name__ == "__main__":
    main()
