"""Fill the tables of README and docs from result files, so that every figure in them is one of a command.

    python scripts/fill_tables.py [--check]

A table stands between two marks, and says where it comes from:

    <!-- table results/long-512/rivals budgets -->
    <!-- /table -->

`budgets` has a line per method and a column per budget: the share of the full cache's average that is left, with its
95 % interval, which `bare` leaves out; of a folder with a `*` in it, for every folder that fits, and of several with
commas between them, for all of them. `tasks 0.1` has a column per dataset, at that budget. Further words choose:
`methods=a;b` the lines and their order, `budgets=0.2;0.05` the columns, `model=NAME` the model, `scorer=NAME` the
scorer. `file` takes the folder's `table.md` as it is. `analysis concentration` (or another figure of `madakv plot`)
shows the numbers of the folders' `data.json`. `bench decode` (or another command of `madakv bench`) shows the rows of
the folder's `decode.json`; `contenders=a;b` chooses among them, with `_` for a blank. `engine` shows answers
through vLLM beside those through transformers, of all files that `scripts/vllm_accuracy.py` wrote into the folder;
`worth` what eviction in vLLM gains, from what `scripts/vllm_speed.py` wrote, and `pools` the seconds behind it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from madakv.bench.results import Row
from madakv.bench.table import page_table
from madakv.markdown import as_percent, budget_text, markdown_table, share_within

ROOT = Path(__file__).parents[1]
FILES = (
    "README.md",
    "docs/analysis.md",
    "docs/choices.md",
    "docs/performance.md",
    "docs/results.md",
    "docs/suite.md",
    "docs/vllm.md",
    "training/small/README.md",
)
_TABLE = re.compile(r"(<!-- table (\S+) ([^>]+?) -->\n).*?(<!-- /table -->)", re.DOTALL)

Line = dict[str, Any]


def filled(text: str) -> str:
    """A document with its tables made again."""
    return _TABLE.sub(lambda found: f"{found[1]}\n{table(found[2], found[3].split())}\n{found[4]}", text)


def table(folder: str, words: list[str]) -> str:
    """The table that a mark asks for."""
    if words[0] == "file":
        return (ROOT / folder / "table.md").read_text()
    options = dict(word.split("=", 1) for word in words if "=" in word)
    if words[0] == "bench":
        return _bench(folder, words[1], options)
    if words[0] == "engine":
        return _engine([json.loads(one.read_text()) for one in sorted(ROOT.glob(f"{folder}/*.json"))])
    if words[0] in SPEEDS:
        return SPEEDS[words[0]](ROOT / folder)
    if words[0] == "analysis":
        found = [json.loads(one.read_text()) for one in sorted(ROOT.glob(f"{folder}/data.json"))]
        return ANALYSES[words[1]]([data for data in found if words[1] in data])
    summaries = [one for pattern in folder.split(",") for one in sorted(ROOT.glob(f"{pattern}/summary.json"))]
    found = [_lines(one, options) for one in summaries]
    if words[0] == "tasks":
        return _tasks(found[0], float(words[1]), options)
    return _budgets(found, options, bare="bare" in words)


def _lines(summary: Path, options: dict[str, str]) -> list[Line]:
    """Those of one model and scorer."""
    lines: list[Line] = json.loads(summary.read_text())
    for name in ("model", "scorer"):
        wanted = options.get(name, lines[0][name])
        lines = [line for line in lines if line[name] == wanted]
    return lines


def _bench(folder: str, command: str, options: dict[str, str]) -> str:
    rows = [Row(**row) for row in json.loads((ROOT / folder / f"{command}.json").read_text())["rows"]]
    wanted = [name.replace("_", " ") for name in _chosen(options, "contenders", str)]
    return page_table(command, [row for row in rows if not wanted or row.contender in wanted])


def _engine(found: list[Any]) -> str:
    head = ["model", "suite", "processes", "budget", "questions", "equal answers", "right in transformers", "in vLLM"]
    body = []
    for row in (row for results in found for row in results["rows"]):
        told = [f"`{row['model']}`", f"`{row['suite']}`", str(row["processes"]), budget_text(row["budget"])]
        counted = [str(row["questions"]), str(row["equal_answers"])]
        body.append([*told, *counted, f"{row['transformers']:.1%}", f"{row['vllm']:.1%}"])
    return markdown_table(head, body, words=(0, 1))


def _by_pool(file: Path) -> dict[float, dict[float, Any]]:
    """What `scripts/vllm_speed.py` measured: of each pool, the row of each budget."""
    pools: dict[float, dict[float, Any]] = {}
    for row in json.loads(file.read_text())["rows"]:
        pools.setdefault(row["pool"], {})[row["budget"]] = row
    return dict(sorted(pools.items()))


def _worth(folder: Path) -> str:
    """Requests that answer at once, and requests per second beside vLLM's own."""
    room = {row["budget"]: row["most_at_once"] for row in json.loads((folder / "capacity.json").read_text())["rows"]}
    head = ["prompts of 2,048 tokens", *("vLLM" if own == 1 else budget_text(own) for own in room)]
    body = [[f"answering at once, of a pool for {room[1.0]} whole", *map(str, room.values())]]
    for pool, rows in _by_pool(folder / "serving.json").items():
        told = f"requests per second, of a pool for {pool:g}"
        whole = rows[1.0]["requests_per_second"]
        ratios = [rows[own]["requests_per_second"] / whole for own in room]
        body.append([told, *("1" if ratio == 1 else f"{ratio:.1f}x" for ratio in ratios)])
    return markdown_table(head, body)


def _pools(folder: Path) -> str:
    """What the requests per second are made of."""
    head = ["pool, in requests", "budget", "answering at once", "seconds", "of them reading", "requests per second"]
    body = []
    for pool, rows in _by_pool(folder / "serving.json").items():
        whole = rows[1.0]["requests_per_second"]
        for budget, row in rows.items():
            seconds = (f"{row['seconds'][name]:.0f}" for name in ("total", "prefill"))
            told = [f"{pool:g}", budget_text(budget), f"{row['at_once']:.1f}", *seconds]
            body.append([*told, f"{row['requests_per_second'] / whole:.2f}x"])
    return markdown_table(head, body)


def _budgets(found: list[list[Line]], options: dict[str, str], *, bare: bool) -> str:
    """A line per method; a column per budget of each of several results; without intervals, if `bare`."""
    head, columns = ["method"], []
    at = {(n, line["label"], line["budget"]): line for n, lines in enumerate(found) for line in lines}
    labels = _chosen(options, "methods", str) or _best_first(found[0])
    for n, lines in enumerate(found):
        there = sorted({line["budget"] for line in lines if line["label"] != "full"}, reverse=True)
        for budget in _chosen(options, "budgets", float) or there:
            named = lines[0]["model"].partition(" ")[0]
            head.append(budget_text(budget) if len(found) == 1 else f"{named}, {budget_text(budget)}")
            columns.append((n, budget))
    # Means over the same right answers differ in their last bits.
    shares = {key: round(line["of_full"], 6) for key, line in at.items()}
    best = {(n, b): max(shares[n, label, b] for label in labels if (n, label, b) in at) for n, b in columns}
    body = []
    for label in labels:
        cells = []
        for n, budget in columns:
            if (line := at.get((n, label, budget))) is None:
                cells.append("")
                continue
            share = f"{line['of_full']:.1%}"
            share = f"**{share}**" if shares[n, label, budget] == best[n, budget] else share
            cells.append(share if bare else share_within(share, *line["interval"]))
        body.append([f"`{label}`", *cells])
    return markdown_table(head, body)


def _concentration(found: list[Any]) -> str:
    """The smallest share of tokens that holds 90 % of the attention, and what a fifth of them holds."""
    body = []
    for data in found:
        fifth = data["concentration"]["shares"].index(0.2)
        for name, curve in data["concentration"]["curves"].items():
            told = (_spread(curve["need"]), _spread(curve["held"][fifth]))
            body.append([f"`{data['model']}`", _SAID[name], f"{curve['tokens']:.0f}", *told])
    return markdown_table(["model", "of", "tokens", "90 % is held by", "a fifth holds"], body)


def _preference(found: list[Any]) -> str:
    body = []
    for data in found:
        for name, said in (("plain", "share of attention"), ("per_token", "per token")):
            heads = sorted(head for layer in data["preference"][name] for head in layer)
            layers = [sum(layer) / len(layer) for layer in data["preference"][name]]
            above = f"{sum(head > 0.5 for head in heads)} of {len(heads)}"
            means = ", ".join(f"{100 * layer:.0f}" for layer in layers)
            body.append([f"`{data['model']}`", said, f"{heads[0]:.0%} to {heads[-1]:.0%}", above, means])
    return markdown_table(["model", "to pictures", "heads", "above half", "mean of each layer, %"], body)


def _layers(found: list[Any]) -> str:
    body = []
    for data in found:
        for name, layers in data["layers"]["demands"].items():
            medians = ", ".join(f"{100 * layer['spread']['median']:.0f}" for layer in layers)
            body.append([f"`{data['model']}`", _SAID[name], medians])
    return markdown_table(["model", "of", "median of each layer's heads, % of the prompt"], body)


def _questions(found: list[Any]) -> str:
    """What each kind of question attends to, and what methods keep for it; those of one model stand side by side."""
    first, *others = found
    head = ["task", "question's attention", *(f"kept by `{data['tasks']['method']}`" for data in found)]
    body = []
    for name, task in first["tasks"]["tasks"].items():
        kept = [data["tasks"]["tasks"][name]["kept"] for data in (first, *others)]
        body.append([f"`{name}`", *(_with_interval(share) for share in (task["attention"], *kept))])
    return markdown_table(head, body)


SPEEDS = {"worth": _worth, "pools": _pools}
ANALYSES = {"concentration": _concentration, "preference": _preference, "layers": _layers, "tasks": _questions}
_SAID = {"text": "text", "image": "pictures", "together": "all tokens as one", "sum": "sum"}


def _spread(spread: dict[str, float]) -> str:
    return share_within(f"{spread['median']:.0%}", spread["low"], spread["high"])


def _with_interval(share: dict[str, Any]) -> str:
    return share_within(f"{share['mean']:.1%}", *share["interval"])


def _tasks(lines: list[Line], budget: float, options: dict[str, str]) -> str:
    at = {line["label"]: line for line in lines if line["label"] == "full" or line["budget"] == budget}
    labels = _chosen(options, "methods", str) or sorted(at, key=lambda label: -at[label]["average"])
    columns = list(at[labels[0]]["datasets"])
    body = [
        [f"`{label}`", *as_percent(at[label]["datasets"], columns), f"**{at[label]['average']:.1%}**"]
        for label in labels
    ]
    return markdown_table(["method", *(f"`{name}`" for name in columns), "average"], body)


def _chosen(options: dict[str, str], name: str, kind: Any) -> list[Any]:
    return [kind(word) for word in options[name].split(";")] if name in options else []


def _best_first(lines: list[Line]) -> list[str]:
    """Methods by what they answer at the largest budget."""
    largest = max(line["budget"] for line in lines if line["label"] != "full")
    there = [line for line in lines if line["label"] != "full" and line["budget"] == largest]
    return [line["label"] for line in sorted(there, key=lambda line: -line["average"])]


def main() -> int:
    """Fill all files; with --check, tell which ones would change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a table is not what its rows say")
    check = parser.parse_args().check
    stale = []
    for name in FILES:
        old = (ROOT / name).read_text()
        new = filled(old)
        if new != old:
            stale.append(name)
            if not check:
                (ROOT / name).write_text(new)
    if check and stale:
        print(f"tables of {', '.join(stale)} differ from their results: run scripts/fill_tables.py", file=sys.stderr)
    return int(bool(check and stale))


if __name__ == "__main__":
    raise SystemExit(main())
