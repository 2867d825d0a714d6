"""Write the tables of the paper's ablation on small real data into results/paper-tables.md.

``python benchmarks/paper_tables.py`` reads results/paper-tables.jsonl: one line for each encoder,
with the settings of its runs, and one for each cell of its tables. What the page says before its
first encoder stays as it is.
"""

from typing import Any

import _lib

RESULTS = _lib.RESULTS / "paper-tables.jsonl"


def main() -> None:
    records = _lib.read_records(RESULTS)
    runs = [record for record in records if "settings" in record]
    page = RESULTS.with_suffix(".md")
    lines = _lib.kept_words(page, f"## {runs[0]['encoder']}\n")
    for run in runs:
        cells = [r for r in records if "table" in r and r["encoder"] == run["encoder"]]
        lines += ["", f"## {run['encoder']}"]
        for title in dict.fromkeys(cell["table"] for cell in cells):
            lines += ["", f"### {title}", ""]
            lines += table_lines([cell for cell in cells if cell["table"] == title])
        lines += ["", f"Stages took {run['minutes']:.0f} minutes of one core together."]
    lines += [
        "",
        "## Origin",
        "",
        f"Commit {runs[0]['commit']}, {runs[0]['machine']}, one thread, bfloat16, seed 0; data "
        "sets nq-oracle with squad-open, scifact, msmarco-dl, cut down. The settings are in "
        "paper-tables.jsonl.",
    ]
    _lib.write_page(page, lines)


def table_lines(cells: list[dict[str, Any]]) -> list[str]:
    """Return a table: the measures of each data set beside one another."""
    names = list(cells[0]["measures"])
    sets = list(dict.fromkeys(cell["set"] for cell in cells))
    baseline = next(cell["system"] for cell in cells if cell["p"] is None)
    rows = []
    for system in dict.fromkeys(cell["system"] for cell in cells):
        rows.append([system])
        for cell in (c for c in cells if c["system"] == system):
            values = [f"{cell['measures'][name]:.3f}" for name in names]
            if cell["p"] is not None:
                values[0] += f" ({cell['p']:.3f})"
            rows[-1] += values
    return [
        *_lib.table(["method", *(f"{data} {name}" for data in sets for name in names)], rows),
        "",
        f"In brackets: p of a paired randomisation test of {names[0]} per query against "
        f"{baseline}.",
    ]


if __name__ == "__main__":
    main()
