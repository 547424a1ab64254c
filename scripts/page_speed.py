"""How fast a report's page opens and follows a slider in Chromium, and how large it is.

    python scripts/page_speed.py --out results/speed/page

Pages hold two methods at a fifth, of random choices, with pictures among the text and a recorded answer. Seconds are
medians of rounds in which all take turns: from the navigation to the page's being drawn, and the main thread's for a
step of the slider of layers.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from madakv.inspection.page import write
from madakv.markdown import markdown_table
from madakv.provenance import provenance, write_whole

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.inspection import synthetic
from tests.inspection.browser import Browser, chromium

LAYERS, HEADS, ANSWER, STEPS = 28, 4, 8, 9
SIZES = ((1_000, 4, 6), (32_000, 40, 12), (100_000, 200, 12))
"""Tokens of text, pictures, and tokens a picture is wide and high."""


def measured(browser: Browser, page: Path) -> dict[str, Any]:
    """One round."""
    begun = time.perf_counter()
    opened = browser.page(page)
    opened.settle()
    drawn = time.perf_counter() - begun
    timing = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd / 1000"
    loaded = float(opened.js(timing))
    paint = float(opened.js("performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"))
    opened.send("Performance.enable", timeDomain="threadTicks")

    def busy() -> float:
        metrics = opened.send("Performance.getMetrics")["metrics"]
        return next(float(each["value"]) for each in metrics if each["name"] == "TaskDuration")

    steps = []
    for layer in range(STEPS):
        before = busy()
        opened.js(f"report.change({{layer: {layer}}})")
        opened.settle()
        steps.append(busy() - before)
    elements = opened.js("document.querySelectorAll('*').length")
    complaints = opened.complaints()
    opened.close()
    if complaints:
        raise SystemExit(f"the page complains: {complaints}")
    return {"loaded": loaded, "paint": paint, "drawn": drawn, "step": statistics.median(steps), "elements": elements}


def table(rows: list[dict[str, Any]]) -> str:
    """For docs/performance.md."""
    head = ["tokens", "pictures", "page, MB", "DOM loaded, s", "first paint, s", "drawn, s", "a slider's step, s"]
    lines = [
        [f"{row['tokens']:,}", str(row["pictures"]), f"{row['bytes'] / 1e6:.1f}"]
        + [f"{row[name]:.2f}" for name in ("loaded", "paint", "drawn")]
        + [f"{row['step']:.3f}"]
        for row in rows
    ]
    return markdown_table(head, lines, words=())


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    program = chromium()
    if program is None:
        raise SystemExit("no Chromium is on this machine: install one, or name it in MADAKV_CHROMIUM")
    with tempfile.TemporaryDirectory() as temporary:
        measure(program, Path(temporary), given)


def measure(program: str, folder: Path, given: argparse.Namespace) -> None:
    """Pages of all sizes, in a folder of their own."""
    rows = []
    for text, pictures, grid in SIZES:
        report = synthetic.report(text=text, pictures=pictures, grid=grid, layers=LAYERS, heads=HEADS, answer=ANSWER)
        path = folder / f"{text}.html"
        write(report, path)
        rows.append({"tokens": len(report.tokens), "pictures": pictures, "path": path, "bytes": path.stat().st_size})
    browser = Browser(program, folder)
    rounds: list[list[dict[str, Any]]] = [[] for _ in rows]
    for number in range(given.rounds):
        for place in [*range(number % len(rows), len(rows)), *range(number % len(rows))]:
            rounds[place].append(measured(browser, rows[place]["path"]))
            print(rows[place]["tokens"], rounds[place][-1], flush=True)
    version = browser.send("Browser.getVersion")["product"]
    browser.close()
    for row, own in zip(rows, rounds, strict=True):
        del row["path"]
        row |= {name: round(statistics.median(each[name] for each in own), 4) for name in own[0]}
    about = provenance(command=" ".join(sys.argv), browser=version, layers=LAYERS, heads=HEADS, answer=ANSWER)
    given.out.mkdir(parents=True, exist_ok=True)
    write_whole(given.out / "page.json", {"about": about, "rows": rows})
    (given.out / "table.md").write_text(table(rows))


if __name__ == "__main__":
    main()
