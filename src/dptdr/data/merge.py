"""Merge data folders, or take a small sample of a large one."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from dptdr.errors import ConfigError, DataError
from dptdr.io.beir import BeirCounts, BeirFolder, write_beir
from dptdr.records import Document, Qrels, Query

Record = TypeVar("Record", Document, Query)


def join_folders(sources: Sequence[Path], *, out: Path) -> BeirCounts:
    """Merge several folders into one data set.

    Every id is prefixed with its folder's name (``NAME:ID``) to avoid collisions; splits with the
    same name are merged. Passages and queries are streamed.

    Raises:
        ConfigError: If there are fewer than two folders or two have the same name.
        DataError: If a folder is missing or malformed.
    """
    folders = [BeirFolder(source) for source in sources]
    names = [folder.name for folder in folders]
    if len(folders) < 2 or len(set(names)) != len(names):
        raise ConfigError(
            f"expected two or more folders with different names to join, got {', '.join(names)}"
        )
    colons = [name for name in names if ":" in name]
    if colons:
        # The first colon separates name and id.
        raise ConfigError(f"expected folder names without a colon, got {', '.join(colons)}")
    return write_beir(
        out,
        passages=_each(folders, _named_documents),
        queries=_each(folders, _named_queries),
        qrels=_merged_qrels(folders),
        meta={
            "joined": [
                {"name": folder.name, "fingerprint": folder.fingerprint()} for folder in folders
            ]
        },
    )


def _each(
    folders: Sequence[BeirFolder], read: Callable[[BeirFolder], Iterator[Record]]
) -> Iterator[Record]:
    for folder in folders:
        yield from read(folder)


def _named_documents(folder: BeirFolder) -> Iterator[Document]:
    for passage, metadata in folder.documents():
        yield Document(passage._replace(id=f"{folder.name}:{passage.id}"), metadata)


def _named_queries(folder: BeirFolder) -> Iterator[Query]:
    return (query._replace(id=f"{folder.name}:{query.id}") for query in folder.queries())


def _merged_qrels(folders: Sequence[BeirFolder]) -> dict[str, Qrels]:
    merged: dict[str, Qrels] = {}
    for folder in folders:
        for split in folder.splits():
            into = merged.setdefault(split, {})
            for query_id, grades in folder.qrels(split).items():
                into[f"{folder.name}:{query_id}"] = {
                    f"{folder.name}:{passage_id}": grade for passage_id, grade in grades.items()
                }
    return merged


def cap_folder(
    source: Path,
    *,
    queries: Mapping[str, int],
    passages: int,
    seed: int,
    out: Path,
    judged: int = 0,
) -> BeirCounts:
    """Write a seeded sample of a folder, with fewer queries per split and fewer passages.

    All passages judged for a kept query are kept, regardless of grade (or a sample of them, see
    ``judged``), and random passages fill the remaining space. Measures are higher over fewer
    passages.

    Args:
        queries: Split name to maximum number of queries; other splits are dropped.
        judged: Maximum judgements per query, at least one of them positive; 0 keeps all. Passages
            whose judgements are dropped are left out.

    Raises:
        ConfigError: If a number is below 1 or the judged passages do not fit.
        DataError: If a split is missing, or a judged query or passage is not in the folder.
    """
    if not queries or min(passages, *queries.values()) < 1:
        raise ConfigError("expected at least 1 passage, and at least 1 query for each split")
    folder = BeirFolder(source)
    sampled = {
        split: _sampled(folder.qrels(split), most=most, seed=f"{split} {seed}")
        for split, most in queries.items()
    }
    qrels = {
        split: _thinned(kept, judged=judged, seed=f"{split} {seed}")
        for split, kept in sampled.items()
    }
    needed = _judged(qrels)
    # Without its judgement, a positive would count as a wrong answer.
    dropped = _judged(sampled) - needed
    if len(needed) > passages:
        raise ConfigError(
            f"{source}: expected at most {passages:,} judged passages for the kept queries, got "
            f"{len(needed):,}; keep more passages or fewer queries"
        )
    ids = {passage.id for passage in folder.passages()}
    asked = {query_id for judged in qrels.values() for query_id in judged}
    known = {query.id for query in folder.queries()}
    if missing := sorted(needed - ids) or sorted(asked - known):
        raise DataError(
            f"judgement of unknown id '{missing[0]}'; `dptdr data inspect` lists all such ids",
            path=folder.path,
        )
    free = sorted(ids - needed - dropped)
    room = min(passages - len(needed), len(free))
    chosen = needed.union(random.Random(f"passages {seed}").sample(free, room))
    return write_beir(
        out,
        passages=(item for item in folder.documents() if item.passage.id in chosen),
        queries=(query for query in folder.queries() if query.id in asked),
        qrels=qrels,
        meta={
            "from": folder.name,
            "fingerprint": folder.fingerprint(),
            "kept": {**queries, "passages": passages, "judged": judged, "seed": seed},
        },
    )


def _judged(qrels: Mapping[str, Qrels]) -> set[str]:
    return {p for judged in qrels.values() for grades in judged.values() for p in grades}


def _sampled(qrels: Qrels, *, most: int, seed: str) -> Qrels:
    """Sample queries with at least one positive, in file order."""
    answered = [query_id for query_id, grades in qrels.items() if max(grades.values()) > 0]
    order = sorted(answered)
    random.Random(f"queries {seed}").shuffle(order)
    kept = set(order[:most])
    return {query_id: qrels[query_id] for query_id in answered if query_id in kept}


def _thinned(qrels: Qrels, *, judged: int, seed: str) -> Qrels:
    """Sample judgements per query: a random positive, then any others."""
    if not judged:
        return qrels
    thinned: Qrels = {}
    for query_id, grades in qrels.items():
        order = sorted(grades)
        random.Random(f"judged {seed} {query_id}").shuffle(order)
        first = next(passage_id for passage_id in order if grades[passage_id] > 0)
        kept = {first, *[passage_id for passage_id in order if passage_id != first][: judged - 1]}
        thinned[query_id] = {p: grade for p, grade in grades.items() if p in kept}
    return thinned
