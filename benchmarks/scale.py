"""Compute time, memory and cost for large corpora from measured figures: docs/scale.md.

    python benchmarks/scale.py --tokens msmarco=DATA wikipedia=DATA

Reads results/encoding.jsonl and results/search.jsonl. ``--tokens`` measures the mean tokens of
passages like those of a corpus; they are kept in results/scale.jsonl.
"""

import argparse
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
    """Measure passages that stand for a corpus: tokens, and bytes of text with its id."""
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
    """Return tokens a second of one core at a mean length, between the measured lengths."""
    points = sorted((r["mean_tokens"], r["per_second"][system] * r["mean_tokens"]) for r in records)
    if tokens <= points[0][0]:
        return points[0][1]
    for (short, low), (long, high) in itertools.pairwise(points):
        if tokens <= long:
            return low + (high - low) * (tokens - short) / (long - short)
    return points[-1][1]


def build_core_seconds(record: dict[str, Any], count: int) -> float:
    """Return core-seconds to build: graphs n log n; lists n to the 1.5 (lists grow as root n)."""
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
    encoding = _lib.read_records(_lib.RESULTS / "encoding.jsonl")
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
    head = ["corpus", "passages", "tokens, mean", "core-time", "on 64 cores", "money"]
    lines += _lib.table([*head, "vectors, float32", "float16", "texts and ids"], rows)
    lines += [
        "",
        "Mean tokens and bytes of text are those of "
        + " and ".join(
            f"{t['passages']:,} passages of {t['data']} ({name})" for name, t in texts.items()
        )
        + ".",
        "",
        "## Memory of an index",
        "",
        "Bytes a passage as measured at the largest size of each kind; the full vectors stay on "
        "disk and are read for re-ranking.",
        "",
    ]
    rows = []
    for r in measured:
        each = r["bytes_in_memory"] / r["rows"]
        cells = [size(count * each) if each else "none" for _, count, _ in CORPORA]
        at = f"{r['rows']:,}" + "".join(f", {option}" for option in r["options"])
        rows.append([r["kind"], at, f"{each:,.0f}", *cells])
    corpora = [name for name, _, _ in CORPORA]
    lines += _lib.table(["kind", "measured at", "bytes a passage", *corpora], rows)
    lines += [
        "",
        "## Building and searching",
        "",
        "Core-time of building: graphs as n log n at least, kinds with lists as n to the 1.5 ("
        "4 root n lists, and every passage is compared with all of them). `exact` needs none; "
        "its time a query grows with n.",
        "",
    ]
    rows = []
    for r in measured:
        if r["kind"] == "exact":
            each = 1 / r["queries_per_second"] / r["rows"] * r["threads"]
            cells = [f"{count * each:,.2f} s a query" for _, count, _ in CORPORA]
        else:
            cells = [duration(build_core_seconds(r, count)) for _, count, _ in CORPORA]
        rows.append([r["kind"], *cells])
    lines += _lib.table(["kind", *corpora], rows)
    lines += ["", *_lib.kept_section(PAGE, "## What follows")]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", nargs="*", default=[], help="NAME=BEIR folder")
    parser.add_argument("--price", type=float, default=0.04, help="money for a core-hour")
    args = parser.parse_args()
    if args.tokens:
        measure_tokens(args.tokens)
    PAGE.write_text("\n".join(page(args)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
