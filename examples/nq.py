"""Natural Questions as the paper runs it: 21 million passages, top-k accuracy by answer match.

    python examples/nq.py --dry-run     print the calls with all settings
    python examples/nq.py               run them; rerun to resume

Expects in ``--downloads`` DPR's psgs_w100.tsv, biencoder-nq-train.json, biencoder-nq-dev.json and
nq-test.qa.csv (each may be .gz), and RoBERTa-large in a folder or in the local cache of Hugging
Face.

It would take about 10 hours on one H100 (computed, not run: docs/scale.md), and 74 GB of disk, plus
86 GB while mining. BM25 over so many passages needs about 30 GB of memory (not measured). DPR's own
BM25 negatives are in data/negatives-train.jsonl after the conversion.
"""

from pathlib import Path

import dptdr
from common import Calls, mine_and_train, parser, run_script
from dptdr.data.formats.conversion import convert

# Refuse files whose counts are not the published ones.
STRICT = True
PRETRAINING = {
    "max_steps": 10_000,
    "batch_size": 2048,
    "span_tokens": 80,
    "mini_batch_size": 64,
    "learning_rate": 1e-4,
    "temperature": 1.0,
    "precision": "bfloat16",
}
MINING = {"num_negatives": 30, "range_max": 200, "dtype": "bfloat16"}
TRAINING = {
    # The authors' prompts: 32 rows for each side.
    "prompt_length": 32,
    "ffn_length": 0,
    "sharing": "untied",
    # Theirs: 60 epochs of 8 cards x 16 questions, 2 passages a question, rate 7e-3.
    "max_steps": 27_600,
    "batch_size": 128,
    "positives_per_query": 1,
    "negatives_per_query": 1,
    "learning_rate": 7e-3,
    # Raw dot products, as theirs.
    "temperature": 1.0,
    "score_scale": 1.0,
    "max_query_tokens": 32,
    # 156 tokens hold a passage of 100 words; the authors give no figure.
    "max_passage_tokens": 156,
    "mini_batch_size": 128,
    "precision": "bfloat16",
    "eval_steps": 0.1,
    "dev_queries": 500,
    "dev_passages": 20_000,
    "dev_measure": "RR@10",
}


def main() -> None:
    """Convert, pretrain, mine and train twice, index, search, measure."""
    options = parser(__doc__, out="runs/nq")
    options.add_argument("--downloads", type=Path, default=Path("downloads/nq"))
    options.add_argument("--backbone", default="roberta-large", help="name or folder")
    arguments = options.parse_args()
    call, out, device = Calls(dry_run=arguments.dry_run), arguments.out, arguments.device
    data, rip, vectors, index, run = (
        out / name for name in ("data", "rip", "vectors", "index", "run.trec")
    )
    call(
        convert,
        arguments.downloads,
        format="dpr",
        strict=STRICT,
        out=data,
        made=data / "meta.json",
    )
    # RIP: the encoder itself is pretrained on the corpus, then frozen.
    call(
        dptdr.pretrain,
        data,
        out=rip,
        backbone=arguments.backbone,
        device=device,
        made=rip / "config.json",
        **PRETRAINING,
    )
    # UNM: negatives of BM25, training, negatives of BM25 and of that retriever, training.
    task = mine_and_train(
        call,
        data,
        out=out / "unm",
        backbone=rip,
        mining=MINING,
        training=TRAINING,
        rounds=2,
        device=device,
    )
    call(dptdr.encode, data, task, out=vectors, dtype="float16", device=device)
    built = call(dptdr.build_index, vectors, task, out=index, index_type="exact", device=device)
    # Test questions have answers and no judgements, so they are found by their ids.
    call(dptdr.retrieve, data, built, id_prefix="test-", depth=100, out=run)
    report = call(
        dptdr.evaluate,
        data / "answers" / "nq-test.qa.csv",
        run,
        protocol="nq",
        passages=data / "corpus.jsonl",
        queries=data / "queries.jsonl",
    )
    if not arguments.dry_run:
        report.write(out / "report.json")
        print({name: round(value, 4) for name, value in report.measures.items()})


if __name__ == "__main__":
    run_script(main)
