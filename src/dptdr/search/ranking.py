"""Rank the judged queries of a split with an encoder, BM25 or a finished run."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from dptdr.errors import DataError
from dptdr.evaluation import DEFAULT_MEASURES, evaluate, read_run
from dptdr.evaluation.measures import parse_measures
from dptdr.evaluation.report import EvaluationReport, judgements_fingerprint
from dptdr.io.beir import BeirFolder
from dptdr.io.identical import own_passages, say_own, without_own
from dptdr.records import Qrels, Query, Run
from dptdr.search.bm25 import K1, B, Bm25Index
from dptdr.search.retrieve import TextEncoder, retrieve
from dptdr.search.words import AUTO

Phase: TypeAlias = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Names a piece of work and gives the callable that is told (done, total) of it."""


class Ranking(NamedTuple):
    """A run with its system's name and fingerprint."""

    run: Run
    system: str
    identity: dict[str, Any]


def judged_queries(
    folder: BeirFolder, split: str, *, limit: int | None = None
) -> tuple[list[Query], Qrels]:
    """Return the judged queries of a split in file order, and their judgements.

    Args:
        split: Name such as ``test``.

    Returns:
        Queries and judgements.

    Raises:
        DataError: If there is no such split, or a judged query has no text.
    """
    judged = folder.qrels(split)
    queries = [query for query in folder.queries() if query.id in judged]
    missing = judged.keys() - {query.id for query in queries}
    if missing:
        raise DataError(
            f"{len(missing)} judged queries have no text, such as '{min(missing)}'; "
            "`dptdr data inspect` lists them",
            path=folder.queries_path,
        )
    kept = queries[:limit]
    return kept, {query.id: judged[query.id] for query in kept}


def prefixed_queries(folder: BeirFolder, prefix: str, *, limit: int | None = None) -> list[Query]:
    """Return the queries whose ids begin with a prefix, judged or not.

    Args:
        prefix: Beginning of the ids.

    Raises:
        DataError: If there is none.
    """
    found = [query for query in folder.queries() if query.id.startswith(prefix)]
    if not found:
        raise DataError(
            f"expected queries whose ids begin with '{prefix}', found none",
            path=folder.queries_path,
        )
    return found[:limit]


def rank(
    system: TextEncoder | Path | Run | str,
    folder: BeirFolder,
    *,
    queries: Sequence[Query],
    depth: int,
    threads: int = 1,
    keep_identical: bool = False,
    phase: Phase,
) -> Ranking:
    """Rank the folder's passages for some queries.

    Args:
        system: An encoder, ``bm25`` or ``bm25:LANGUAGE``, a run, or the path of a run file.
        threads: Threads of BM25.
        keep_identical: Whether a query that is a passage may find itself.
    """
    own = {} if keep_identical else own_passages(queries, folder.passages())
    say_own(len(own))
    ranking = _rank(
        system, folder, queries=queries, depth=depth + bool(own), threads=threads, phase=phase
    )
    finished = isinstance(system, Path | dict)
    kept = without_own(ranking.run, own, depth=None if finished else depth)
    return ranking._replace(run=kept)


def _rank(
    system: TextEncoder | Path | Run | str,
    folder: BeirFolder,
    *,
    queries: Sequence[Query],
    depth: int,
    threads: int,
    phase: Phase,
) -> Ranking:
    if isinstance(system, Path):
        return Ranking(read_run(system), system.stem, {"run": str(system)})
    if isinstance(system, dict):
        return Ranking(system, "run", {})
    if isinstance(system, str):
        language = system.partition(":")[2] or AUTO
        with phase("index with BM25") as on_progress:
            index = Bm25Index.build(folder.passages(), language=language, on_progress=on_progress)
        with phase("search with BM25") as on_progress:
            run = index.search(queries, depth=depth, threads=threads, on_progress=on_progress)
        name = "bm25" if index.language == "english" else f"bm25-{index.language}"
        return Ranking(run, name, {"k1": K1, "b": B, "language": index.language})
    with phase("encode and search") as on_progress:
        run = retrieve(
            system,
            queries=queries,
            passages=list(folder.passages()),
            depth=depth,
            keep_identical=True,
            on_progress=on_progress,
        )
    fingerprints = {
        "backbone": system.backbone_fingerprint,
        "query": system.query_fingerprint,
        "passage": system.passage_fingerprint,
    }
    return Ranking(run, system.name, {"fingerprints": fingerprints})


def measure(
    ranking: Ranking,
    folder: BeirFolder,
    *,
    split: str,
    qrels: Qrels,
    measures: Sequence[str] = (),
    depth: int,
) -> EvaluationReport:
    """Measure a ranking on a split's judgements; unanswered queries count as 0.

    Args:
        measures: As ir_measures names them; nDCG@10, RR@10 and R@100 by default.
    """
    evaluation = evaluate(ranking.run, qrels, measures=list(measures or DEFAULT_MEASURES))
    return EvaluationReport(
        system=ranking.system,
        data=folder.name,
        split=split,
        judgements_fingerprint=judgements_fingerprint(qrels),
        protocol="ir_measures",
        measures=evaluation.measures,
        per_query=evaluation.per_query,
        queries=evaluation.queries,
        details={
            **ranking.identity,
            "data_fingerprint": folder.fingerprint(),
            "depth": depth,
            "unanswered": evaluation.unanswered,
            "judged_hits": evaluation.judged_hits,
            "relevant": sum(g > 0 for grades in qrels.values() for g in grades.values()),
        },
    )


def needed_depth(measures: Sequence[str]) -> int:
    """Return the depth that the measures need, at least 100."""
    parsed = parse_measures(list(measures or DEFAULT_MEASURES)).values()
    # A measure without a cutoff looks as deep as the ranking goes.
    cutoffs = [int(m["cutoff"]) if "cutoff" in m.params else 1000 for m in parsed]
    return max(100, *cutoffs)
