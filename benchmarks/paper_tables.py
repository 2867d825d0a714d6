"""Write the page of the paper's ablation on small real data: results/paper-tables.md.

``python benchmarks/paper_tables.py`` reads results/paper-tables.jsonl: one line for each encoder,
with the settings of its runs, and one for each cell of its tables.
"""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "results"

WORDS = """\
# The paper's tables

Made by `python benchmarks/paper_tables.py` from `paper-tables.jsonl`. Rows are the paper's: FT
trains the whole encoder, DPT a deep prompt on the frozen one, RIP pretrains the encoder on the
corpus's bare texts first, UNM trains with mined negatives of BM25 and of the DPT retriever, DPTDR
is all three.

## What can be compared with the paper, and what cannot

- **Not the numbers.** The paper searches 8.8 million MS MARCO passages and 21 million Wikipedia
  passages with RoBERTa-large. Here a small encoder searches {passages} passages for at most
  {queries} queries, after {steps} steps of {batch} queries. Over so few passages every measure is
  much higher. What the authors report for MS MARCO (MRR@10 0.39052, their README) can be held
  against a run on the whole data alone ([Reproduce the paper](../docs/reproduce.md)); that
  was **not run**: there was no card and no data.
- **Not levels between data sets or encoders.** The cuts differ, MS MARCO here is TREC's graded
  judgements with ten kept of each query, and NQ is joined with SQuAD.
- **With care, the order of the rows.** It is the question of the paper's ablation, asked with one
  seed, few queries and short training: a difference whose p (in brackets, against DPT) is not
  small says nothing. RIP of {rip} steps tests the machinery more than the idea;
  the whole MS MARCO is meant to have 8,600 steps of 2,048 documents.
- MiniLM was itself trained on MS MARCO, NQ and SQuAD, so that little is left to gain on two of the
  three sets and tuning can forget; the paper starts from an encoder that has seen no retrieval
  data.
- `raw`, where it is shown, is the nearest thing to the paper's start: a BERT of 4 layers of width
  256, trained from random weights with masked words alone on the bare texts of these corpora
  (`benchmarks/pretraining_raw.py`, 1,000 steps of 32 documents). It is weak: BM25 is far ahead of
  whatever is tuned on it in 60 steps. What one half of the method adds to the other can be seen on
  it, the level cannot.
- **Few-shot MS MARCO** has 43 training queries, some of them held out: any method can learn them
  by heart, and the untuned encoder may stay ahead.
- **Prompt lengths**: the paper has 128 rows (MS MARCO) and 32 (NQ) in 24 layers of
  width 1,024; here 4 to 64 rows in the small encoder.
"""


def main() -> None:
    """Write the page."""
    text = (RESULTS / "paper-tables.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.splitlines()]
    (RESULTS / "paper-tables.md").write_text("\n".join(page(records)) + "\n", encoding="utf-8")


def page(records: list[dict[str, Any]]) -> list[str]:
    """Return the page's lines."""
    runs = [record for record in records if "settings" in record]
    settings = runs[0]["settings"]
    caps = [value for name, value in settings.items() if name.startswith("data-")]
    lines = WORDS.format(
        passages=f"{max(cap['passages'] for cap in caps):,}",
        queries=max(int(cap["queries"][-1].partition("=")[2]) for cap in caps),
        steps=settings["train"]["steps"],
        batch=settings["train"]["batch_size"],
        rip=settings["pretrain"]["steps"],
    ).splitlines()
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
    return lines


def table_lines(cells: list[dict[str, Any]]) -> list[str]:
    """Return a table in markdown: the measures of each data set beside one another."""
    names = list(cells[0]["measures"])
    sets = list(dict.fromkeys(cell["set"] for cell in cells))
    baseline = next(cell["system"] for cell in cells if cell["p"] is None)
    head = ["method", *(f"{data} {name}" for data in sets for name in names)]
    lines = [row(head), row(["---"] * len(head))]
    for system in dict.fromkeys(cell["system"] for cell in cells):
        shown = [system]
        for cell in (c for c in cells if c["system"] == system):
            values = [f"{cell['measures'][name]:.3f}" for name in names]
            if cell["p"] is not None:
                values[0] += f" ({cell['p']:.3f})"
            shown += values
        lines.append(row(shown))
    return [
        *lines,
        "",
        f"In brackets: p of a paired randomisation test of {names[0]} per query against "
        f"{baseline}.",
    ]


def row(values: list[str]) -> str:
    """Return one row of a table."""
    return f"| {' | '.join(values)} |"


if __name__ == "__main__":
    main()
