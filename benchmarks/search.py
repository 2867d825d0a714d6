"""Measure every index type against exact search, and against faiss itself.

    python benchmarks/search.py run --data DATA [DATA ...] --rows 10000 100000 --work FOLDER
    python benchmarks/search.py table

Real passages of several data sets are encoded once (resumable) and concatenated; for more rows,
they are repeated with noise. Queries are such rows with other noise, so that none is its own
answer. faiss itself is measured in the same run, in turns with our index, with the same parameters,
vectors and answers: where our index type rescores candidates with the full vectors, so does the
code around faiss, as a user of the library would write it. Each pair of row count and type is one
record of results/search.jsonl; existing records are not measured again, so the command can be
interrupted.
"""

import argparse
import functools
import hashlib
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import _lib
from dptdr.io.atomic import read_json
from dptdr.records import Passage
from dptdr.search.exact import exact_top_k
from dptdr.search.indexes.building import BuildSettings, build_index
from dptdr.search.indexes.local import INDEX_FILE, LocalIndex
from dptdr.search.indexes.types import INDEX_TYPES
from dptdr.search.vectors.documents import Source
from dptdr.search.vectors.encoding import EncodeSettings, encode_folder
from dptdr.search.vectors.folder import VectorFolder

DEPTH = 100
SIDES = ("", "library_")
RESULTS = _lib.RESULTS / "search.jsonl"


class Prepared(NamedTuple):
    """Vectors of one size with queries and their true answers."""

    folder: VectorFolder
    real_rows: int
    queries: np.ndarray
    exact: np.ndarray


class TableEncoder:
    """Gives ready vectors to passages whose text is a row number."""

    name = "table"
    backbone_fingerprint = query_fingerprint = "table"

    def __init__(self, table: np.ndarray) -> None:
        self.table = table
        self.dim = table.shape[1]
        self.passage_fingerprint = hashlib.sha256(table.tobytes()).hexdigest()

    def encode_passages(self, texts: list[str], *, on_progress: Any = None) -> np.ndarray:
        """Return the rows that the texts name."""
        del on_progress
        return self.table[[int(text) for text in texts]]

    encode_queries = encode_passages


def real_vectors(args: argparse.Namespace) -> np.ndarray:
    """Return the vectors of all passages of all data sets, encoded once."""
    from dptdr.model import load_encoder

    load = functools.cache(lambda: load_encoder(backbone=args.backbone))
    parts = []
    for data in args.data:
        folder = _lib.vectors_of(data, out=args.work / f"vectors-{data.name}", load=load)
        parts.append(np.concatenate([block for _, block in folder.blocks()]))
    return np.concatenate(parts)


def grown(vectors: np.ndarray, rows: int, *, seed: int) -> np.ndarray:
    """Return so many rows: real ones first, then noisy copies of them."""
    generator = np.random.default_rng(seed)
    spread = vectors.std(axis=0)
    joined = np.empty((rows, vectors.shape[1]), dtype=np.float32)
    have = 0
    while have < rows:
        take = vectors[generator.permutation(len(vectors))[: rows - have]]
        if have:
            take = noisy(take, spread, generator)
        joined[have : have + len(take)] = take
        have += len(take)
    return joined


def noisy(vectors: np.ndarray, spread: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return vectors moved by 0.7 standard deviations of each dimension, at unit length."""
    noise = generator.standard_normal(vectors.shape, dtype=np.float32) * spread * np.float32(0.7)
    moved = vectors + noise
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def prepared(args: argparse.Namespace, rows: int) -> Prepared:
    """Return vectors, queries and true answers of one size; made once and kept."""
    out = args.work / f"table-{rows}"
    truth = args.work / f"truth-{rows}.npz"
    vectors = real_vectors(args)
    if not truth.is_file():
        table = grown(vectors, rows, seed=args.seed)
        generator = np.random.default_rng(args.seed + 1)
        picked = table[generator.choice(rows, size=min(args.queries, rows), replace=False)]
        queries = noisy(picked, vectors.std(axis=0), generator).astype(np.float32)
        _, exact = exact_top_k(queries, table, depth=DEPTH)
        make_folder(table, out)
        np.savez(truth, queries=queries, exact=exact)
    with np.load(truth) as kept:
        return Prepared(VectorFolder(out), min(rows, len(vectors)), kept["queries"], kept["exact"])


def make_folder(table: np.ndarray, out: Path) -> VectorFolder:
    """Write a table as a vector folder."""
    shutil.rmtree(out, ignore_errors=True)
    folder = encode_folder(
        TableEncoder(table),
        (Passage(f"p{row}", str(row)) for row in range(len(table))),
        out=out,
        source=Source(fingerprint=str(len(table))),
        settings=EncodeSettings(shard_size=65_536),
    )
    assert folder is not None
    return folder


def recall(found: list[list[str]], exact: np.ndarray, depth: int) -> float:
    shares = [
        len(set(ids[:depth]) & {f"p{row}" for row in rows[:depth]}) / depth
        for ids, rows in zip(found, exact, strict=True)
    ]
    return statistics.fmean(shares)


def seconds_in_turns(
    first: Callable[[], object], second: Callable[[], object], *, rounds: int
) -> tuple[list[float], list[float]]:
    """Return times of two calls, taken alternately so that both meet the same machine."""
    times: tuple[list[float], list[float]] = ([], [])
    for round_number in range(rounds + 1):
        calls = [(0, first), (1, second)]
        for place, call in calls if round_number % 2 else calls[::-1]:
            started = time.perf_counter()
            call()
            if round_number:
                times[place].append(time.perf_counter() - started)
    return times


def raw_search(
    index: LocalIndex, full: np.ndarray, *, depth: int
) -> Callable[[np.ndarray], object]:
    """Return the same search by the library alone, with the same parameters and re-ranking."""
    rows: Any = index.rows
    wanted = min(index.count, depth * max(1, index.rerank))
    if index.index_type == "exact":
        import faiss

        flat = faiss.IndexFlatIP(index.dim)
        flat.add(full)
        return lambda queries: flat.search(queries, depth)
    parameters = rows._parameters(wanted, None)

    def first(queries: np.ndarray) -> np.ndarray:
        return rows.index.search(queries, wanted, params=parameters)[1]

    def both(queries: np.ndarray) -> object:
        found = first(queries)
        if not index.rerank:
            return found
        scores = np.einsum("qd,qcd->qc", queries, full[found])
        best = np.argsort(-scores, axis=1)[:, :depth]
        return np.take_along_axis(scores, best, 1), np.take_along_axis(found, best, 1)

    return both


def measure(index: LocalIndex, at: Prepared, *, rounds: int) -> dict[str, Any]:
    """Return recall, throughput and latency of one index, and of the library under it."""
    full = np.ascontiguousarray(
        at.folder.gather(np.arange(at.folder.count))
        if index.index_type == "exact" or index.rerank
        else np.empty((0, index.dim), dtype=np.float32)
    )
    queries = at.queries
    record: dict[str, Any] = {"rerank": index.rerank}
    record["recall@100"] = recall(index.search(queries, depth=DEPTH).ids, at.exact, 100)
    record["recall@10"] = recall(index.search(queries, depth=10).ids, at.exact, 10)
    alone = raw_search(index, full, depth=10)
    some = queries[: max(100, min(len(queries), 200_000_000 // index.count))]
    ours, raw = seconds_in_turns(
        lambda: index.search(some, depth=10), lambda: alone(some), rounds=rounds
    )
    record["queries_per_second"] = len(some) / statistics.median(ours)
    record["library_queries_per_second"] = len(some) / statistics.median(raw)
    record["time_over_library"] = statistics.median(a / b for a, b in zip(ours, raw, strict=True))
    singles: tuple[list[float], list[float]] = ([], [])
    for row in range(min(200 if index.index_type != "exact" else 30, len(queries))):
        one = queries[row : row + 1]
        for place, call in enumerate((lambda q: index.search(q, depth=10), alone)):
            started = time.perf_counter()
            call(one)
            singles[place].append((time.perf_counter() - started) * 1000)
    for name, times in zip(SIDES, singles, strict=True):
        record[f"{name}latency_ms_median"] = statistics.median(times)
        record[f"{name}latency_ms_p95"] = sorted(times)[int(len(times) * 0.95)]
    file = index.path / INDEX_FILE
    record["bytes_in_memory"] = file.stat().st_size if file.is_file() else 0
    record["bytes_of_vectors_on_disk"] = index.count * index.dim * 4
    return record


def run(args: argparse.Namespace) -> None:
    import faiss

    faiss.omp_set_num_threads(args.threads)
    found = _lib.read_records(args.json)
    for rows in args.rows:
        kinds = [
            k for k in args.kinds if not any((r["rows"], r["kind"]) == (rows, k) for r in found)
        ]
        if not kinds:
            continue
        at = prepared(args, rows)
        for kind in kinds:
            out = args.work / f"index-{rows}-{kind}"
            settings = BuildSettings(
                threads=args.threads,
                seed=args.seed if INDEX_TYPES[kind].seeded else None,
                options=options(args),
            )
            started = time.perf_counter()
            index, _ = build_index(at.folder, out=out, index_type=kind, settings=settings)
            record = {
                "rows": rows,
                "kind": kind,
                "real_rows": at.real_rows,
                "dim": index.dim,
                "queries": len(at.queries),
                "data": [data.name for data in args.data],
                "threads": args.threads,
                "seed": args.seed,
                "options": args.option,
                "rounds": args.rounds,
                "build_seconds": read_json(out / "manifest.json")["build_seconds"],
                "whole_build_seconds": time.perf_counter() - started,
                **measure(index, at, rounds=args.rounds),
                "load_average": os.getloadavg()[0],
                **_lib.here(),
            }
            del index
            shutil.rmtree(out)
            print(json.dumps(record), flush=True)
            _lib.append_record(args.json, record)
    if args.json == RESULTS:
        table(args)


def options(args: argparse.Namespace) -> dict[str, int]:
    pairs = [text.split("=", 1) for text in args.option]
    return {name: int(value) for name, value in pairs}


def table(args: argparse.Namespace) -> None:
    """Write results/search.md from the records."""
    records = _lib.read_records(args.json)
    records.sort(key=lambda r: (r["rows"], list(INDEX_TYPES).index(r["kind"])))
    lines = [
        "# Search",
        "",
        "Made by `python benchmarks/search.py run --data ... --work ...` (records in "
        "`search.jsonl`). Vectors of real passages by `minilm`, repeated with noise where "
        "more are wanted; queries are such vectors with noise of their own. Library: raw faiss "
        "with the same parameters, in turns with ours in one run; where a kind scores "
        "candidates again on the full vectors, so does the raw side, in plain numpy. For `exact` "
        "the library is faiss' flat index. Memory: the index beside the vectors, which stay "
        "memory-mapped on disk.",
        "",
        "A type over usearch was measured beside these until it was removed: at 100,000 passages "
        "recall@10 .997, 5,467 queries a second and 104.4 MB, where `hnsw-sq` has .998, 5,564 and "
        "65.6 MB.",
    ]
    for rows in sorted({r["rows"] for r in records}):
        some = [r for r in records if r["rows"] == rows]
        first = some[0]
        lines += [
            "",
            f"## {rows:,} passages ({first['real_rows']:,} real, {first['dim']} numbers, "
            f"{first['bytes_of_vectors_on_disk'] / 1e6:,.0f} MB of vectors, "
            f"{first['queries']:,} queries)",
            "",
            *_lib.table(HEAD, map(cells, some)),
        ]
    lines += _lib.origins(map(origin, records))
    _lib.write_page(args.json.with_suffix(".md"), lines)


HEAD = [
    *("kind", "recall@10", "recall@100", "queries/s", "library", "time over library"),
    *("ms, median (95 %)", "library", "build, s", "MB in memory", "options"),
]


def cells(r: dict[str, Any]) -> list[str]:
    return [
        r["kind"],
        *(f"{r[measure]:.3f}" for measure in ("recall@10", "recall@100")),
        *(f"{r[f'{side}queries_per_second']:,.0f}" for side in SIDES),
        f"{r['time_over_library']:.2f}",
        *(f"{r[f'{s}latency_ms_median']:.2f} ({r[f'{s}latency_ms_p95']:.2f})" for s in SIDES),
        f"{r['build_seconds']:.1f}",
        f"{r['bytes_in_memory'] / 1e6:.1f}",
        " ".join(r["options"]),
    ]


def origin(r: dict[str, Any]) -> str:
    return (
        f"{_lib.made_with(r)} of which {r['threads']} used, seed {r['seed']}, data sets "
        f"{', '.join(r['data'])}"
    )


def main() -> None:
    parser, sub = _lib.commands(__doc__, run=run, table=table, results=RESULTS)
    sub.add_argument("--kinds", nargs="+", default=list(INDEX_TYPES), choices=list(INDEX_TYPES))
    sub.add_argument("--option", nargs="*", default=[], help="name=number, as of dptdr index")
    counts = {"rows": ([10_000], "passages"), "queries": 1000, "seed": 7}
    own = {"threads": (1, "of building and searching"), "rounds": (5, "timed rounds of each pair")}
    work = {"work": (Path, "folder for vectors and indexes")}
    _lib.add_options(sub, **_lib.VECTORS | counts | own | work)
    _lib.obey(parser)


if __name__ == "__main__":
    main()
