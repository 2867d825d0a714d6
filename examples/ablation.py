"""The paper's ablation in small: what each half of the method adds, on small data.

    python examples/ablation.py --dry-run
    python examples/ablation.py                       Python's own texts, no download
    python examples/ablation.py --data DIR --sets scifact nq-oracle

FT trains the whole encoder, DPT a deep prompt on the frozen one. RIP first pretrains the encoder on
the corpus's unlabelled texts, UNM trains with negatives from BM25 and the DPT retriever; DPTDR does
all of it. The sizes are small on purpose: if you have more time, raise ``--passages``,
``--queries`` and ``--steps``.
"""

from pathlib import Path
from typing import Any

import dptdr
from common import Calls, mine_and_train, parser, run_script
from dptdr.data.merge import cap_folder
from dptdr.data.sample import SAMPLES, build_sample

MEASURES = ["nDCG@10", "RR@10", "R@50"]
TRAINING: dict[str, Any] = {
    "batch_size": 16,
    "max_query_tokens": 32,
    "max_passage_tokens": 96,
    # One dev measure, at the end: so few dev queries could not choose between checkpoints.
    "eval_steps": 0.0,
    "dev_queries": 20,
    "dev_passages": 60,
    "seed": 0,
}
PRETRAINING: dict[str, Any] = {
    "max_steps": 30,
    "batch_size": 16,
    "span_tokens": 64,
    "mini_batch_size": None,
    "eval_steps": 0.0,
    "dev_documents": 32,
}
MINING: dict[str, Any] = {"num_negatives": 20, "range_max": 50}
# The paper's prompt has attention rows alone.
PROMPT: dict[str, Any] = {"prompt_length": 16, "ffn_length": 0}
LENGTHS = (4, 64)


def main() -> None:
    """Make every row for every set, and write the table."""
    options = parser(__doc__, out="runs/ablation")
    options.add_argument("--data", type=Path, help="where the folders of --sets are")
    options.add_argument("--sets", nargs="+", default=["python-code"], help="names of data sets")
    options.add_argument("--backbone", default="minilm", help="name or folder")
    options.add_argument("--steps", type=int, default=60)
    options.add_argument("--queries", type=int, default=200, help="most test queries")
    options.add_argument("--passages", type=int, default=1200)
    arguments = options.parse_args()
    call = Calls(dry_run=arguments.dry_run)
    lines: list[str] = []
    for name in arguments.sets:
        reports = one_set(call, name, arguments=arguments)
        if not arguments.dry_run:
            lines += table(name, reports)
            (arguments.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def one_set(call: Calls, name: str, *, arguments: Any) -> dict[str, Any]:
    """Return the report of each row."""
    out = arguments.out / name
    whole = arguments.data / name if arguments.data else out / "whole"
    if name in SAMPLES and not arguments.data:
        call(build_sample, name, out=whole, made=whole / "corpus.jsonl")
    data = out / "data"
    sizes = {"train": 3 * arguments.queries, "test": arguments.queries}
    call(
        cap_folder,
        whole,
        queries=sizes,
        passages=arguments.passages,
        seed=0,
        out=data,
        made=data / "corpus.jsonl",
    )
    training = {**TRAINING, "max_steps": arguments.steps}
    common = {"device": arguments.device}

    def train(task: str, backbone: Any, **settings: Any) -> Path:
        made = out / task
        settings = training | ({} if "method" in settings else PROMPT) | settings
        call(
            dptdr.train,
            data,
            out=made,
            backbone=backbone,
            made=made / "task.json",
            **common,
            **settings,
        )
        return made

    rip = out / "rip"
    call(
        dptdr.pretrain,
        data,
        out=rip,
        backbone=arguments.backbone,
        made=rip / "config.json",
        **common,
        **PRETRAINING,
    )
    mined = {"mining": MINING, "training": training | PROMPT, "device": arguments.device}
    plain = train("dpt", arguments.backbone)
    pretrained = train("rip-dpt", rip)
    rows: dict[str, Any] = {
        "BM25": "bm25",
        "encoder, untuned": arguments.backbone,
        "FT": train("ft", arguments.backbone, method="full"),
        "DPT": plain,
        "DPT + RIP": pretrained,
        "DPT + UNM": mine_and_train(
            call, data, out=out / "unm", backbone=arguments.backbone, start=plain, **mined
        ),
        "DPTDR (all)": mine_and_train(
            call, data, out=out / "dptdr", backbone=rip, start=pretrained, **mined
        ),
    }
    for length in LENGTHS:
        row = train(f"dpt-{length}", arguments.backbone, prompt_length=length)
        rows[f"DPT, {length} rows"] = row
    reports = {}
    for row, system in rows.items():
        place = {} if system == "bm25" else {"device": arguments.device}
        reports[row] = call(dptdr.evaluate, data, system, measures=MEASURES, **place)
    return reports


def table(name: str, reports: dict[str, Any]) -> list[str]:
    """Return a set's table, with a paired test of each row against DPT."""
    lines = [f"## {name}", "", f"| method | {' | '.join(MEASURES)} | against DPT, p |"]
    lines.append("| --- " * (len(MEASURES) + 2) + "|")
    for row, report in reports.items():
        values = [f"{report.measures[measure]:.3f}" for measure in MEASURES]
        tested = ""
        if row != "DPT":
            (first,) = dptdr.compare([reports["DPT"], report], measures=MEASURES[:1]).contrasts
            tested = f"{first.test.mean_difference:+.3f}, {first.test.p_randomisation:.3f}"
        lines.append(f"| {row} | {' | '.join(values)} | {tested} |")
    return [*lines, ""]


if __name__ == "__main__":
    run_script(main)
