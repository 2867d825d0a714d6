"""A retriever for your own pairs: from a table to answers.

    python examples/own_data.py PAIRS --query "a question"

PAIRS is a CSV, TSV, JSON-lines or Parquet file with a column of questions (``query``, ``question``
or ``anchor``) and one of texts that answer them (``positive``, ``answer`` or ``passage``). A fifth
of the queries is held out to measure the gain from tuning, and a tenth to choose the checkpoint.
"""

from pathlib import Path

import dptdr
from common import Calls, parser, run_script
from dptdr.data.formats.columns import TableSettings
from dptdr.data.formats.conversion import convert

# What is right where nobody knows better; see docs/training.md. Few queries get fewer steps.
TRAINING: dict[str, object] = {}


def main() -> None:
    """Convert, train, measure against the untouched encoder and BM25, index, search."""
    options = parser(__doc__, out="runs/own-data")
    options.add_argument("pairs", type=Path, help="table of questions and answers")
    options.add_argument("--backbone", default="minilm", help="name or folder")
    options.add_argument("--query", action="append", default=[], help="search this; repeatable")
    arguments = options.parse_args()
    call, out, device = Calls(dry_run=arguments.dry_run), arguments.out, arguments.device
    data, task = out / "data", out / "task"
    table = TableSettings(dev_share=0.1, test_share=0.2)
    call(
        convert,
        arguments.pairs,
        format="table",
        out=data,
        table=table,
        made=data / "meta.json",
    )
    call(
        dptdr.train,
        data,
        out=task,
        backbone=arguments.backbone,
        device=device,
        made=task / "task.json",
        **TRAINING,
    )
    reports = [call(dptdr.evaluate, data, "bm25")]
    for encoder in (arguments.backbone, task):
        reports.append(call(dptdr.evaluate, data, encoder, device=device))
    if not arguments.dry_run:
        for report in reports:
            shown = {name: round(value, 4) for name, value in report.measures.items()}
            print(f"  {report.system}: {shown}")
    index = call(dptdr.build_index, data, task, out=out / "index", device=device)
    for text in arguments.query if not arguments.dry_run else []:
        print(text)
        for hit in index.search(text, k=3):
            print(f"  {hit.score:.3f}  {hit.id}  {' '.join(hit.text.split())[:80]}")


if __name__ == "__main__":
    run_script(main)
