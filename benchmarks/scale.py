"""Compute time, memory and cost for large corpora from measured figures: docs/scale.md.

    python benchmarks/scale.py --tokens msmarco=DATA wikipedia=DATA

Reads results/encoding.jsonl and results/search.jsonl. ``--tokens`` measures the mean tokens of
passages like those of a corpus and stores them in results/scale.jsonl.
"""

import argparse
import functools
import itertools
import math
import statistics
from pathlib import Path
from typing import Any

import _lib
from dptdr.search.indexes.types import INDEX_TYPES
from dptdr.search.vectors.documents import read_documents

PAGE = _lib.ROOT / "docs" / "scale.md"
SAMPLE = 2000

CORPORA = [
    ("MS MARCO passages", 8_841_823, "msmarco"),
    ("Wikipedia in 100 words", 21_015_324, "wikipedia"),
    ("a billion passages", 1_000_000_000, "wikipedia"),
]


def measure_tokens(pairs: list[str]) -> None:
    """Measure passages that represent a corpus: tokens, and bytes of text with its id."""
    from dptdr.model import Backbone
    from dptdr.search.vectors.documents import pack_documents

    backbone = Backbone.load("minilm")
    for pair in pairs:
        name, _, data = pair.partition("=")
        documents = list(itertools.islice(read_documents(Path(data)), SAMPLE))
        ids = backbone.tokenize([d.passage.content for d in documents], side="passage")
        record = {
            "corpus": name,
            "data": Path(data).name,
            "passages": len(documents),
            "mean_tokens": statistics.fmean(len(row) for row in ids),
            "text_bytes": len(pack_documents(documents)[0]) / len(documents) + 8,
            **_lib.here(),
        }
        _lib.put_records(_lib.RESULTS / "scale.jsonl", [record], ("corpus",))


def tokens_per_second(records: list[dict[str, Any]], system: str, tokens: float) -> float:
    """Return tokens per second per core at a mean length, interpolated between measured ones."""
    points = sorted((r["mean_tokens"], r["per_second"][system] * r["mean_tokens"]) for r in records)
    if tokens <= points[0][0]:
        return points[0][1]
    for (short, low), (long, high) in itertools.pairwise(points):
        if tokens <= long:
            return low + (high - low) * (tokens - short) / (long - short)
    return points[-1][1]


def build_core_seconds(record: dict[str, Any], count: int) -> float:
    """Return core-seconds to build: n log n for graphs, n^1.5 for inverted lists."""
    rows, seconds = record["rows"], record["build_seconds"] * record["threads"]
    if record["kind"].startswith(("ivf", "rabitq")):
        return seconds * (count / rows) ** 1.5
    return seconds * count / rows * math.log(count) / math.log(rows)


def duration(seconds: float) -> str:
    for unit, length in (("years", 365.25 * 86400), ("days", 86400), ("hours", 3600)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds / 60:,.1f} minutes"


def size(count: float) -> str:
    for unit, length in (("TB", 1e12), ("GB", 1e9)):
        if count >= length:
            return f"{count / length:,.1f} {unit}"
    return f"{count / 1e6:,.1f} MB"


def page(args: argparse.Namespace) -> list[str]:
    made = _lib.read_records(_lib.RESULTS / "encoding.jsonl")
    encoding = [record for record in made if "per_second" in record]
    search = _lib.read_records(_lib.RESULTS / "search.jsonl")
    measured = _lib.read_records(_lib.RESULTS / "scale.jsonl")
    texts = {record["corpus"]: record for record in measured}
    dim = search[0]["dim"]
    largest = {
        kind: max((r for r in search if r["kind"] == kind), key=lambda r: r["rows"], default=None)
        for kind in INDEX_TYPES
    }
    measured = [r for r in largest.values() if r is not None]
    lines = [*_lib.kept_words(PAGE, "| corpus |"), ""]
    rows = []
    for name, count, like in CORPORA:
        text = texts[like]
        rate = tokens_per_second(encoding, "dptdr, prompt of 16", text["mean_tokens"])
        seconds = count * text["mean_tokens"] / rate
        sizes = [size(count * each) for each in (dim * 4, dim * 2, text["text_bytes"])]
        times = [duration(seconds), duration(seconds / 64), f"{seconds / 3600 * args.price:,.1f}"]
        rows.append([name, f"{count:,}", f"{text['mean_tokens']:.0f}", *times, *sizes])
    head = ["corpus", "passages", "mean tokens", "CPU time", "on 64 cores", "cost"]
    lines += _lib.table([*head, "vectors, float32", "float16", "texts and ids"], rows)
    lines += [
        "",
        "Mean tokens and bytes of text were measured on "
        + " and ".join(
            f"{t['passages']:,} passages of {t['data']} ({name})" for name, t in texts.items()
        )
        + ".",
        "",
        "## Memory of an index",
        "",
        "Bytes per passage, measured at the largest size tested for each type. The full vectors "
        "stay on disk and are read for re-ranking.",
        "",
    ]
    rows = []
    for r in measured:
        each = r["bytes_in_memory"] / r["rows"]
        cells = [size(count * each) if each else "none" for _, count, _ in CORPORA]
        at = f"{r['rows']:,}" + "".join(f", {option}" for option in r["options"])
        rows.append([r["kind"], at, f"{each:,.0f}", *cells])
    corpora = [name for name, _, _ in CORPORA]
    lines += _lib.table(["index type", "measured at", "bytes per passage", *corpora], rows)
    lines += [
        "",
        "## Building and searching",
        "",
        "CPU time to build: at least n log n for graphs; n^1.5 for inverted lists, because each "
        "passage is compared with all 4√n centroids. `exact` has no build step; its query time "
        "grows linearly with n.",
        "",
    ]
    rows = []
    for r in measured:
        if r["kind"] == "exact":
            each = 1 / r["queries_per_second"] / r["rows"] * r["threads"]
            cells = [f"{count * each:,.2f} s per query" for _, count, _ in CORPORA]
        else:
            cells = [duration(build_core_seconds(r, count)) for _, count, _ in CORPORA]
        rows.append([r["kind"], *cells])
    lines += _lib.table(["index type", *corpora], rows)
    lines += ["", *paper_runs(), "", *_lib.kept_section(PAGE, "## Recommendations")]
    return lines


# RoBERTa-large, and an H100's peak rate for dense bfloat16 (its data sheet).
LARGE = {
    "vocab_size": 50_265,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
LIMIT, SHARE = 989e12, 0.4
# Cost of a step in forward passes: GradCache encodes twice, and a frozen encoder's backward pass
# (counted: 1.02) computes no weight gradients (with them: 2.0).
PASSES = {"pretrain": 4.0, "train": 3.02, "encode": 1.0}
# Texts and mean tokens of the GPU stages of examples/msmarco.py and examples/nq.py.
RUNS: dict[str, list[tuple[str, str, float, float]]] = {
    "examples/msmarco.py": [
        ("pretrain, 8,600 steps of 2,048", "pretrain", 8_600 * 2_048 * 2, 80),
        ("train twice, 78,584 steps of 64 queries", "train", 2 * 78_584 * 64, 8),
        ("their 30 passages per query", "train", 2 * 78_584 * 64 * 30, 82),
        ("encode the passages twice", "encode", 2 * 8_841_823, 82),
    ],
    "examples/nq.py": [
        ("pretrain, 10,000 steps of 2,048", "pretrain", 10_000 * 2_048 * 2, 80),
        ("train twice, 27,600 steps of 128 questions", "train", 2 * 27_600 * 128, 11),
        ("their 2 passages per question", "train", 2 * 27_600 * 128 * 2, 108),
        ("encode the passages twice", "encode", 2 * 21_015_324, 108),
    ],
}


def paper_runs() -> list[str]:
    """Return GPU hours and memory of the paper's runs, from counted operations."""
    each = {tokens: counted(tokens)[0] for tokens in (8, 11, 80, 82, 108)}
    rows = []
    for script, stages in RUNS.items():
        hours = []
        for stage, kind, texts, tokens in stages:
            work = texts * tokens * each[int(tokens)] * PASSES[kind]
            hours.append(work / (LIMIT * SHARE) / 3600)
            rows.append([f"`{script}`", stage, f"{work / 1e18:,.2f}", f"{hours[-1]:,.1f}", ""])
            rows[-1][-1] = f"{hours[-1] / 8:,.1f}"
        whole = sum(hours)
        rows.append([f"`{script}`", "**total**", "", f"**{whole:,.0f}**", f"**{whole / 8:,.1f}**"])
    frozen, whole = (counted(tokens, n=n, train=train)[1] for tokens, n, train in CHUNKS)
    return [
        "## The paper's runs",
        "",
        "GPU hours for RoBERTa-large, from FLOPs counted by torch, at "
        f"{SHARE * 100:.0f} % of an H100's {LIMIT / 1e12:.0f} TFLOP/s. **This utilisation is an "
        "assumption, not a measurement.** We assume linear scaling over eight GPUs. Pretraining "
        "heads, BM25 and I/O are not included.",
        "",
        *_lib.table(["script", "stage", "EFLOP", "hours on one GPU", "on eight"], rows),
        "",
        "Activation memory in bfloat16, computed from tensor shapes: training a prompt needs "
        f"{frozen / 1e9:.1f} GB for a chunk of 128 passages of 128 tokens; pretraining the encoder "
        f"needs {whole / 1e9:.1f} GB for a chunk of 64 spans of 80 tokens. Autocast's copies are "
        "not included. Weights and AdamW's state take 1.4 GB for a prompt and 5.7 GB for the whole "
        "encoder.",
        "",
        "Each script runs its stages on one GPU. To use eight, print the calls with `--dry-run`, "
        "pass their settings to `torchrun --nproc-per-node 8 -m dptdr pretrain` and `... -m dptdr "
        "train`, which split each batch, then rerun the script, which continues from there.",
    ]


CHUNKS = ((128, 128, False), (80, 64, True))


@functools.cache
def large_encoder() -> Any:
    """Return RoBERTa-large on the meta device, without weights."""
    import torch
    import transformers

    with torch.device("meta"):
        config = transformers.RobertaConfig(**LARGE, max_position_embeddings=514)
        return transformers.RobertaModel(config, add_pooling_layer=False).to(torch.bfloat16).eval()


def counted(tokens: int, *, n: int = 64, train: bool = False) -> tuple[float, int]:
    """Return the FLOPs per token of a forward pass, and the bytes that it keeps."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = large_encoder().requires_grad_(train)
    shape = (n, tokens, model.config.hidden_size)
    start = torch.zeros(shape, dtype=torch.bfloat16, device="meta", requires_grad=True)
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # Held, so that no other tensor can take its address.
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _out = model(inputs_embeds=start).last_hidden_state
    size = sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in weights)
    return counter.get_total_flops() / n / tokens, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", nargs="*", default=[], help="NAME=BEIR folder")
    parser.add_argument("--price", type=float, default=0.04, help="cost of a core-hour")
    args = parser.parse_args()
    if args.tokens:
        measure_tokens(args.tokens)
    PAGE.write_text("\n".join(page(args)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
