"""Whether what the question is after holds the answer: what the choice of an echo rests on.

    python scripts/echo_reach.py --samples 6 --out results/smollm2/echo-reach

For every sample whose answer stands in the text word by word, the share of the text that is more relevant than the
answer's own place: an echo of an eighth of the text reaches it if that is below 0.125. Beside the relevance in use
stand simpler signals: what the question attends to at all, and the same of the last third of the layers.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from madakv.evaluation.documents.presentation import presentation_for
from madakv.evaluation.suites import suite
from madakv.hf.replay import ReadPrompt
from madakv.loading import load
from madakv.markdown import markdown_table
from madakv.prompts import model_inputs
from madakv.provenance import provenance, write_whole
from madakv.scoring import proxy_and_context_attention, proxy_mask
from madakv.scoring.relevance import USUAL, relevance, spread_to_neighbours

_SHARES = (0.0625, 0.125, 0.25)


def place_of(ids: list[int], tokenizer: Any, answer: str) -> slice | None:
    """Where an answer first stands in a prompt."""
    for start in ("", " "):
        wanted = tokenizer(start + answer, add_special_tokens=False)["input_ids"]
        for at in range(len(ids) - len(wanted)):
            if ids[at : at + len(wanted)] == wanted:
                return slice(at, at + len(wanted))
    return None


def signals(read: ReadPrompt) -> dict[str, Tensor]:
    """[N] each."""
    question = proxy_mask(read.modality)
    told: dict[str, Tensor] = defaultdict(lambda: torch.zeros(read.modality.shape[1]))
    for number, view in enumerate(read.views):
        paid, usual = proxy_and_context_attention(view, question, USUAL)
        told["relevance"] += relevance(paid, usual, question)[0]
        attended = paid.sum(1).masked_fill(question, 0.0)[0]
        told["attention"] += attended
        if number >= 2 * len(read.views) // 3:
            told["attention, last third of layers"] += attended
    return dict(told)


def table(rows: list[dict[str, Any]]) -> str:
    """For docs/choices.md: a line per task, a column per signal and share."""
    names = list(dict.fromkeys(row["signal"] for row in rows))
    shares = _SHARES[1:]
    head = ["task", "samples", *(f"{name}: {share:.3g}" for share in shares for name in names)]
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = {row["signal"]: row for row in rows if row["task"] == task}
        cells = [f"{own[name][f'within {share}']:.2f}" for share in shares for name in names]
        lines.append([task, str(own[names[0]]["samples"]), *cells])
    return markdown_table(head, lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--suite", default="text-1k")
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--seed", type=int, default=100000)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model, processor = load(options.model, device="cpu", dtype="float32")
    tokenizer = getattr(processor, "tokenizer", processor)
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for sample in suite(options.suite)(options.samples, options.seed, presentation_for(processor)):
        if sample.following is not None or sample.follow_up is not None:
            continue
        inputs = model_inputs(processor, sample.prompt, sample.pictures())
        place = place_of(inputs["input_ids"][0].tolist(), tokenizer, sample.gold)
        if place is None:
            continue
        read = ReadPrompt.of(model, inputs)
        context = ~proxy_mask(read.modality)[0]
        for name, told in signals(read).items():
            spread = spread_to_neighbours(told)
            found[sample.dataset, name].append(float((spread[context] > spread[place].max()).float().mean()))
        print(sample.id, sample.dataset, {name: round(own[-1], 3) for (_, name), own in found.items()}, flush=True)
    rows = [
        {
            "task": task,
            "signal": name,
            "samples": len(above),
            "more_relevant": round(statistics.mean(above), 3),
            **{f"within {share}": round(sum(x < share for x in above) / len(above), 3) for share in _SHARES},
        }
        for (task, name), above in sorted(found.items())
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    about = provenance(command=" ".join(sys.argv), model=options.model, suite=options.suite, seed=options.seed)
    write_whole(options.out / "reach.json", {"about": about, "rows": rows})
    (options.out / "table.md").write_text(table(rows))


if __name__ == "__main__":
    main()
