"""Measure every kind of index against exact search, and against raw faiss and usearch.

    python benchmarks/search.py --data DATA [DATA ...] --backbone minilm --rows 10000 100000 \
        --work FOLDER --json results/search.json

Real passages of several data sets are encoded once (resumable) and joined; where more rows are
asked for, they are repeated with noise. Queries are other real passages with noise, so that none
is its own answer. Raw libraries are measured in the same run, in turns with ours, with the same
parameters, on the same vectors.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dptdr.files import write_json
from dptdr.records import Passage
from dptdr.search.building import BuildSettings, build_index
from dptdr.search.documents import Source, read_documents, source_of
from dptdr.search.encoding import EncodeSettings, encode_folder
from dptdr.search.exact import exact_top_k
from dptdr.search.kinds import KINDS
from dptdr.search.local import GRAPH, LocalIndex
from dptdr.search.vectors import VectorFolder

DEPTH = 100


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
    parts = []
    encoder: Any = None
    for data in args.data:
        out = args.work / f"vectors-{data.name}"
        if not (out / "manifest.json").is_file():
            if encoder is None:
                from dptdr.model import load_encoder

                encoder = load_encoder(backbone=args.backbone)
            encode_folder(encoder, read_documents(data), out=out, source=source_of(data))
        parts.append(np.concatenate([block for _, block in VectorFolder(out).blocks()]))
    return np.concatenate(parts)


def grown(vectors: np.ndarray, rows: int, *, seed: int) -> np.ndarray:
    """Return so many rows: the real ones first, then noisy copies of them."""
    generator = np.random.default_rng(seed)
    copies = [vectors[:rows]]
    have = len(copies[0])
    spread = vectors.std(axis=0)
    while have < rows:
        take = vectors[generator.permutation(len(vectors))[: rows - have]]
        noise = generator.standard_normal(take.shape).astype(np.float32) * spread * 0.7
        copies.append(take + noise)
        have += len(take)
    joined = np.concatenate(copies)
    return (joined / np.linalg.norm(joined, axis=1, keepdims=True)).astype(np.float32)


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


def raw_search(index: LocalIndex, queries: np.ndarray, *, depth: int) -> Callable[[], object]:
    """Return a call that does the same search by the library alone, with the same parameters."""
    rows: Any = index.rows
    wanted = min(index.count, depth * max(1, index.rerank))
    if index.kind == "usearch":
        return lambda: rows.index.search(queries, wanted, threads=0)
    if index.kind == "exact":
        import faiss

        flat = faiss.IndexFlatIP(index.dim)
        for _, block in index.vectors.blocks():
            flat.add(np.ascontiguousarray(block, dtype=np.float32))
        return lambda: flat.search(queries, depth)
    parameters = rows._parameters(wanted, None)
    return lambda: rows.index.search(queries, wanted, params=parameters)


def measure(index: LocalIndex, queries: np.ndarray, exact: np.ndarray, *, rounds: int) -> dict:
    """Return recall, throughput and latency of one index, and of the library under it."""
    record: dict[str, Any] = {"kind": index.kind, "rerank": index.rerank}
    found = index.search(queries, depth=DEPTH)
    record["recall@100"] = recall(found.ids, exact, 100)
    record["recall@10"] = recall(index.search(queries, depth=10).ids, exact, 10)
    ours, raw = seconds_in_turns(
        lambda: index.search(queries, depth=10),
        raw_search(index, queries, depth=10),
        rounds=rounds,
    )
    record["queries_per_second"] = len(queries) / statistics.median(ours)
    record["library_queries_per_second"] = len(queries) / statistics.median(raw)
    ratios = [a / b for a, b in zip(ours, raw, strict=True)]
    record["time_over_library"] = statistics.median(ratios)
    singles = []
    for row in range(min(200, len(queries))):
        started = time.perf_counter()
        index.search(queries[row : row + 1], depth=10)
        singles.append((time.perf_counter() - started) * 1000)
    record["latency_ms_median"] = statistics.median(singles)
    record["latency_ms_p95"] = sorted(singles)[int(len(singles) * 0.95)]
    file = index.path / GRAPH
    record["bytes_in_memory"] = file.stat().st_size if file.is_file() else 0
    record["bytes_of_vectors_on_disk"] = index.count * index.dim * 4
    return record


def machine() -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "commit": commit,
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


def records(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    vectors = real_vectors(args)
    generator = np.random.default_rng(args.seed)
    for rows in args.rows:
        table = grown(vectors, rows, seed=args.seed)
        picked = table[generator.choice(len(table), size=min(args.queries, rows), replace=False)]
        noise = generator.standard_normal(picked.shape).astype(np.float32) * table.std(axis=0) * 0.7
        queries = (picked + noise).astype(np.float32)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        _, exact = exact_top_k(queries, table, depth=DEPTH)
        folder = make_folder(table, args.work / f"table-{rows}")
        for kind in args.kinds:
            out = args.work / f"index-{rows}-{kind}"
            started = time.perf_counter()
            index, _ = build_index(
                folder, out=out, kind=kind, settings=BuildSettings(threads=args.threads)
            )
            manifest = json.loads((out / "manifest.json").read_text())
            record = {
                "rows": rows,
                "real_rows": min(rows, len(vectors)),
                "dim": index.dim,
                "build_seconds": manifest["build_seconds"],
                "whole_build_seconds": time.perf_counter() - started,
            }
            yield record | measure(index, queries, exact, rounds=args.rounds)
            del index
            shutil.rmtree(out)
        shutil.rmtree(folder.path)


def table_of(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| passages | kind | recall@10 | recall@100 | queries/s | library alone "
        "| time over library | ms, median | ms, 95 % | build, s | MB in memory |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['rows']:,} | {r['kind']} | {r['recall@10']:.3f} | {r['recall@100']:.3f} "
        f"| {r['queries_per_second']:,.0f} | {r['library_queries_per_second']:,.0f} "
        f"| {r['time_over_library']:.2f} | {r['latency_ms_median']:.2f} "
        f"| {r['latency_ms_p95']:.2f} | {r['build_seconds']:.1f} "
        f"| {r['bytes_in_memory'] / 1e6:.1f} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="BEIR folders")
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000], help="passages")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each pair")
    parser.add_argument("--threads", type=int, default=0, help="build threads, 0 for all cores")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--work", type=Path, required=True, help="folder for vectors and indexes")
    parser.add_argument("--json", type=Path, help="write all figures here")
    args = parser.parse_args()
    found = []
    for record in records(args):
        found.append(record)
        print(json.dumps(record), flush=True)
        if args.json:
            settings = {name: str(value) for name, value in vars(args).items()}
            write_json(args.json, {"machine": machine(), "settings": settings, "records": found})
    print(table_of(found))


if __name__ == "__main__":
    main()
