"""Show what query-only prompts give up in quality and save in cost: all tasks share one index.

    python benchmarks/quality.py run --sets tldr --method deep-prompt --set sharing=query-only
    python benchmarks/query_only.py cost --data DATA --work FOLDER
    python benchmarks/query_only.py table

Quality: the cells of benchmarks/quality.py with that setting, against tied prompts with otherwise
equal settings. Cost: a corpus is encoded and indexed once by the bare backbone for ten query-only
tasks, and ten times for ten tied ones. The cost record is in results/query-only.jsonl.
"""

import argparse
import itertools
import json
import shutil
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import _lib
from dptdr.errors import WrongPrompt
from dptdr.records import Document, Query
from dptdr.search.index import search_queries
from dptdr.search.indexes.building import build_index
from dptdr.search.indexes.local import LocalIndex
from dptdr.search.vectors.documents import Source, read_documents
from dptdr.search.vectors.encoding import encode_folder

RESULTS = _lib.RESULTS / "query-only.jsonl"
HEAD = ["data", "steps", "seeds", "bare", "tied", "query-only", "against bare", "against tied"]
PROMPT_LENGTH = 16


def cost(args: argparse.Namespace) -> None:
    """Encode and index a corpus for ten tasks, once and ten times."""
    import torch

    torch.set_num_threads(args.threads)
    documents = list(itertools.islice(read_documents(args.data), args.passages))
    shutil.rmtree(args.work, ignore_errors=True)
    sides = {}
    for sharing in ("query-only", "tied"):
        encoders = [tuned(sharing, seed=task) for task in range(args.tasks)]
        sides[sharing] = side(encoders, documents, args.work / sharing)
        print(sharing, sides[sharing], flush=True)
    record = {
        "data": args.data.name,
        "passages": len(documents),
        "tasks": args.tasks,
        "prompt_length": PROMPT_LENGTH,
        "prompt_bytes": sum(t.nbytes for t in tuned("tied", seed=0).method.state().values()),
        "threads": args.threads,
        "sides": sides,
        **_lib.here(),
    }
    _lib.write_records(args.json, [record])
    table(args)


def tuned(sharing: str, *, seed: int) -> Any:
    """Return an encoder with a random prompt: what it costs does not depend on its numbers."""
    from dptdr.model import Backbone

    prompt = {"prompt_length": PROMPT_LENGTH, "sharing": sharing}
    name = f"{sharing}-{seed}"
    encoder = _lib.prompted(Backbone.load("minilm"), seed=seed, name=name, **prompt)
    encoder.eval()
    return encoder


def side(encoders: list[Any], documents: list[Document], work: Path) -> dict[str, Any]:
    """Give every task an index that it may search; return how many, their bytes and the time."""
    indexes: list[LocalIndex] = []
    seconds = 0.0
    encoders[0].encode_passages([document.passage.content for document in documents[:50]])
    for number, encoder in enumerate(encoders):
        query = [Query("q", documents[0].passage.content)]
        try:
            search_queries(indexes[0], encoder, queries=query, depth=1)
        except (IndexError, WrongPrompt):
            started = time.perf_counter()
            vectors = work / f"vectors-{number}"
            folder = encode_folder(
                encoder, documents, out=vectors, source=Source(fingerprint="cost")
            )
            assert folder is not None
            index, _ = build_index(folder, out=work / f"index-{number}", index_type="hnsw")
            seconds += time.perf_counter() - started
            shutil.rmtree(vectors)
            indexes.append(index)
            search_queries(index, encoder, queries=query, depth=1)
    files = [path for path in work.rglob("*") if path.is_file()]
    return {
        "indexes": len(indexes),
        "bytes": sum(path.stat().st_size for path in files),
        "seconds": seconds,
    }


def rows() -> list[str]:
    """Return one row for each data set that has both kinds of prompt, all else being equal."""
    groups: dict[str, dict[str, list[_lib.Record]]] = {}
    for record in _lib.read_records(_lib.RESULTS / "quality.jsonl"):
        if record["method"] not in ("bare", "deep-prompt"):
            continue
        settings = dict(record.get("settings", {}))
        sharing = settings.pop("sharing", "tied")
        same = _lib.key_of(record, ("set", "encoder", "precision", "query_ids"))
        if record["method"] == "bare":
            groups.setdefault(same, {})["bare"] = [record]
        else:
            name = f"{sharing} {record['steps']} {json.dumps(settings, sort_keys=True)}"
            groups.setdefault(same, {}).setdefault(name, []).append(record)
    found = []
    for systems in groups.values():
        for name, own in systems.items():
            tied = systems.get(name.replace("query-only", "tied", 1), [])
            if name.startswith("query-only") and tied and "bare" in systems:
                found.append(row(systems["bare"], tied, own))
    return _lib.table(HEAD, sorted(found))


def row(bare: list[_lib.Record], tied: list[_lib.Record], own: list[_lib.Record]) -> list[str]:
    first = own[0]
    size = f"{first['queries']} queries, {first['passages']:,} passages"
    return [
        f"{first['set']} ({size})",
        str(first["steps"]),
        str(len(own)),
        *(f"{fmean(r['test']['nDCG@10'] for r in side):.4f}" for side in (bare, tied, own)),
        _lib.difference(own, bare),
        _lib.difference(own, tied),
    ]


def table(args: argparse.Namespace) -> None:
    """Write the page from the cells and the cost record that there are."""
    lines = [*_lib.kept_words(RESULTS.with_suffix(".md"), "| "), "", *rows()]
    for record in _lib.read_records(args.json):
        ten = {name: record["sides"][name] for name in ("query-only", "tied")}
        lines += [
            "",
            "## Cost",
            "",
            f"{record['tasks']} tasks with prompts of {record['prompt_length']} rows "
            f"({record['prompt_bytes'] / 1e3:.0f} kB each in float32) over {record['passages']:,} "
            f"passages of {record['data']}, encoded and indexed (`hnsw`).",
            "",
            *_lib.table(
                ["prompts", "indexes", "MB (vectors, texts, graphs)", "seconds"],
                [
                    [name, str(s["indexes"]), f"{s['bytes'] / 1e6:.1f}", f"{s['seconds']:.1f}"]
                    for name, s in ten.items()
                ],
            ),
            "",
            f"One index takes 1/{ten['tied']['bytes'] / ten['query-only']['bytes']:.1f} of the "
            f"bytes and 1/{ten['tied']['seconds'] / ten['query-only']['seconds']:.1f} of the time.",
            "",
            f"Commit {record['commit']}, {record['cpu']}, {record['cores']} cores of which "
            f"{record['threads']} used.",
        ]
    _lib.write_page(args.json.with_suffix(".md"), lines)


def main() -> None:
    parser, sub = _lib.commands(__doc__, run=cost, table=table, results=RESULTS, name="cost")
    _lib.add_options(sub, data=(Path, "BEIR folder"), passages=1000, tasks=10)
    _lib.add_options(sub, threads=_lib.VECTORS["threads"], work=(Path, "folder to make and remove"))
    _lib.obey(parser)


if __name__ == "__main__":
    main()
