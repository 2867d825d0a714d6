"""The paper's ablation on small real data: from the run of a recipe to results/paper-tables.*.

First the recipe, which can be stopped and goes on; then this, which takes whatever cells are done::

    dptdr run recipes/ablation.toml
    python benchmarks/paper_tables.py minilm=runs/ablation

Each argument is ``ENCODER=WORK``; the page gets a pair of tables for each.
"""

import argparse
import contextlib
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "ablation.toml"

WORDS = """\
# The paper's tables

Made by `dptdr run recipes/ablation.toml` and `python benchmarks/paper_tables.py`. Rows are the
paper's: FT trains the whole encoder, DPT a deep prompt on the frozen one, RIP pretrains the encoder
on the corpus's bare texts first, UNM trains with mined negatives of BM25 and of the DPT retriever,
DPTDR is all three.

## What can be compared with the paper, and what cannot

- **Not the numbers.** The paper searches 8.8 million MS MARCO passages and 21 million Wikipedia
  passages with RoBERTa-large. Here a small encoder searches {passages} passages for at most
  {queries} queries, after {steps} steps of {batch} queries. Over so few passages every measure is
  much higher. What the authors report for MS MARCO (MRR@10 0.39052, their README) can be held
  against `recipes/msmarco.toml` on the whole data alone; that was **not run**: there was no card
  and no data.
- **Not levels between data sets or encoders.** The cuts differ, MS MARCO here is TREC's graded
  judgements with ten kept of each query, and NQ is joined with SQuAD.
- **With care, the order of the rows.** It is the question of the paper's ablation, asked with one
  seed, few queries and short training: a difference whose p (in brackets, against DPT) is not
  small says nothing. RIP of {rip} steps tests the machinery more than the idea;
  `recipes/msmarco.toml` plans 8,600 steps of 2,048 documents.
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
- **Prompt lengths**: the paper's recipes have 128 rows (MS MARCO) and 32 (NQ) in 24 layers of
  width 1,024; here 4 to 64 rows in the small encoder.
"""


def main() -> None:
    """Collect what is done and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="ENCODER=WORK of a run of recipes/ablation.toml")
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    arguments = parser.parse_args()
    runs = [collected(*text.split("=", 1)) for text in arguments.runs]
    result = {
        "command": "python benchmarks/paper_tables.py "
        + " ".join(f"{run['encoder']}=WORK" for run in runs),
        "commit": commit(),
        "machine": machine(),
        "runs": runs,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "paper-tables.json").write_text(
        json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    (arguments.out / "paper-tables.md").write_text("\n".join(page(result)) + "\n", encoding="utf-8")
    print(f"{sum(len(table['cells']) for run in runs for table in run['tables'])} cells")


def collected(encoder: str, work: str) -> dict[str, Any]:
    """Return the tables of one run as far as they are done, and how its stages were made."""
    from dptdr.io.atomic import read_json
    from dptdr.recipes.table import make_table, table_cells

    stages = {
        link.name: read_json(link / "stage.json")
        for link in sorted((Path(work) / "stages").iterdir())
        if (link / "stage.json").is_file()
    }
    recipe = tables_of_recipe()
    tables = []
    for settings in recipe:
        reports = {}
        for system, column, texts in table_cells(settings):
            names = [text.removeprefix("@") for text in texts]
            if all(name in stages for name in names):
                reports[system, column] = [
                    Path(work) / "stages" / name / "report.json" for name in names
                ]
        made = make_table(settings, reports, out=Path(work) / "partial" / "table.json")
        tables.append(made)
    return {
        "encoder": encoder,
        "tables": tables,
        "settings": {name: shown(record) for name, record in stages.items()},
    }


def tables_of_recipe() -> list[dict[str, Any]]:
    """Return the settings of the recipe's tables."""
    from dptdr.cli.commands import options_of
    from dptdr.recipes.reading import read_recipe

    recipe = read_recipe(RECIPE, options_of=options_of)
    return [stage.settings for stage in recipe.stages if stage.do == "table"]


def shown(record: dict[str, Any]) -> dict[str, Any]:
    """Return how a stage was made, without the places of this machine."""
    settings = {
        key: value
        for key, value in record["settings"].items()
        if key not in ("data", "task", "backbone", "negatives", "source", "sources")
    }
    return {"do": record["do"], "seconds": record["seconds"], "settings": settings}


def page(result: dict[str, Any]) -> list[str]:
    """Return the page."""
    from dptdr.recipes.table import table_lines

    first = result["runs"][0]["settings"]
    train = next(record["settings"] for record in first.values() if record["do"] == "train")
    cap = [record["settings"] for record in first.values() if record["do"] == "cap"]
    rip = [record["settings"]["steps"] for record in first.values() if record["do"] == "pretrain"]
    lines = WORDS.format(
        passages=f"{max(settings['passages'] for settings in cap):,}",
        queries=max(int(settings["queries"][-1].partition("=")[2]) for settings in cap),
        steps=train["steps"],
        batch=train["batch_size"],
        rip=rip[0] if rip else "few",
    ).splitlines()
    for run in result["runs"]:
        lines += ["", f"## {run['encoder']}"]
        for table in run["tables"]:
            missing = len(table["systems"]) * len(table["columns"]) - len(table["cells"])
            lines += [
                "",
                *(
                    line.replace("# ", "### ", 1) if line.startswith("# ") else line
                    for line in table_lines(table)
                ),
            ]
            if missing:
                lines += ["", f"{missing} cells are empty: the time ended before they were run."]
        seconds = sum(record["seconds"] for record in run["settings"].values())
        lines += ["", f"Stages took {seconds / 60:.0f} minutes of one core together."]
    lines += [
        "",
        "## Origin",
        "",
        f"Commit {result['commit']}, {result['machine']}, one thread, bfloat16, seed 0; data sets "
        "nq-oracle with squad-open, scifact, msmarco-dl, cut by the recipe's cap stages. Every "
        "stage's settings and seconds stand in paper-tables.json.",
    ]
    return lines


def machine() -> str:
    """Describe the processor."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
    return f"{model}, {os.cpu_count()} cores"


def commit() -> str:
    """Return the commit that is checked out."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
