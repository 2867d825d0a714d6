"""Rank passages for the judged queries of a split with an encoder, BM25 or an existing run."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from dptdr.errors import DataError
from dptdr.evaluation import DEFAULT_MEASURES, evaluate, read_run
from dptdr.evaluation.measures import parse_measures
from dptdr.evaluation.report import EvaluationReport, judgements_fingerprint
from dptdr.io.beir import BeirFolder
from dptdr.io.identical import own_passages, report_own_passages, without_own
from dptdr.records import Passage, Qrels, Query, Run
from dptdr.search.bm25 import K1, B, Bm25Index
from dptdr.search.retrieve import TextEncoder, retrieve
from dptdr.search.words import AUTO

Phase: TypeAlias = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Context manager for a named phase of work; yields its (done, total) progress callback."""


class SystemRun(NamedTuple):
    """A run with the name and fingerprint of its system."""

    run: Run
    system: str
    identity: dict[str, Any]


def judged_queries(
    folder: BeirFolder, split: str, *, limit: int | None = None
) -> tuple[list[Query], Qrels]:
    """Return the judged queries of a split (such as ``test``) in file order, and their qrels.

    Raises:
        DataError: If the split does not exist, or a judged query has no text.
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
    """Return the queries whose ids start with a prefix, judged or not.

    Raises:
        DataError: If there are none.
    """
    found = [query for query in folder.queries() if query.id.startswith(prefix)]
    if not found:
        raise DataError(
            f"expected query ids starting with '{prefix}', got none",
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
    qrels: Qrels | None = None,
    phase: Phase,
) -> SystemRun:
    """Rank the folder's passages for each query.

    Says so on standard error if relevant passages are not in the folder: no system can find them.

    Args:
        system: An encoder, ``bm25`` or ``bm25:LANGUAGE``, a run, or the path of a run file.
        threads: Threads for BM25.
        keep_identical: Let a query that is also a passage retrieve itself.
        qrels: Judgements of the queries.
    """
    relevant = {p for grades in (qrels or {}).values() for p, grade in grades.items() if grade > 0}
    missing = set(relevant)
    passages = _crossed_off(missing, folder.passages())
    own = own_passages(() if keep_identical else queries, passages, qrels=qrels)
    report_own_passages(len(own))
    if missing:
        sys.stderr.write(
            f"{len(missing):,} of {len(relevant):,} relevant passages are not in the corpus, such "
            f"as '{min(missing)}'; they count as not found\n"
        )
    ranking = _rank(
        system, folder, queries=queries, depth=depth + bool(own), threads=threads, phase=phase
    )
    finished = isinstance(system, Path | dict)
    kept = without_own(ranking.run, own, depth=None if finished else depth)
    return ranking._replace(run=kept)


def _crossed_off(missing: set[str], passages: Iterable[Passage]) -> Iterator[Passage]:
    for passage in passages:
        missing.discard(passage.id)
        yield passage


def _rank(
    system: TextEncoder | Path | Run | str,
    folder: BeirFolder,
    *,
    queries: Sequence[Query],
    depth: int,
    threads: int,
    phase: Phase,
) -> SystemRun:
    if isinstance(system, Path):
        return SystemRun(read_run(system), system.stem, {"run": str(system)})
    if isinstance(system, dict):
        return SystemRun(system, "run", {})
    if isinstance(system, str):
        language = system.partition(":")[2] or AUTO
        with phase("index with BM25") as on_progress:
            index = Bm25Index.build(folder.passages(), language=language, on_progress=on_progress)
        with phase("search with BM25") as on_progress:
            run = index.search(queries, depth=depth, threads=threads, on_progress=on_progress)
        name = "bm25" if index.language == "english" else f"bm25-{index.language}"
        return SystemRun(run, name, {"k1": K1, "b": B, "language": index.language})
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
    return SystemRun(run, system.name, {"fingerprints": fingerprints})


def measure(
    ranking: SystemRun,
    folder: BeirFolder,
    *,
    split: str,
    qrels: Qrels,
    measures: Sequence[str] = (),
    depth: int | None,
    keep_identical: bool = False,
) -> EvaluationReport:
    """Evaluate a ranking on the judgements of a split; queries without hits score 0.

    Args:
        measures: Measures in ir_measures notation; nDCG@10, RR@10 and R@100 by default.
        depth: Passages ranked per query; ``None`` for a run made elsewhere.
        keep_identical: Whether queries could retrieve themselves, for the record.
    """
    evaluation = evaluate(ranking.run, qrels, measures=list(measures or DEFAULT_MEASURES))
    if depth is not None:
        _report_unranked(measures, ranking.run, depth=depth)
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
            "keep_identical": keep_identical,
            "unanswered": evaluation.unanswered,
            "judged_hits": evaluation.judged_hits,
            "relevant": sum(g > 0 for grades in qrels.values() for g in grades.values()),
        },
    )


def needed_depth(measures: Sequence[str]) -> int:
    """Return the ranking depth required by the measures, at least 100.

    Measures without a cutoff, or of judged passages only, get 1,000 hits, like TREC's runs.
    """
    parsed = parse_measures(list(measures or DEFAULT_MEASURES)).values()
    cutoffs = [
        int(m["cutoff"]) if "cutoff" in m.params and not _skips_unjudged(m) else 1000
        for m in parsed
    ]
    return max(100, *cutoffs)


def _skips_unjudged(measure: Any) -> bool:
    return bool(measure.params.get("judged_only")) or measure.NAME in ("Bpref", "infAP")


def _report_unranked(measures: Sequence[str], run: Run, *, depth: int) -> None:
    """Report measures of judged passages that may be below the depth of the ranking."""
    parsed = parse_measures(list(measures or DEFAULT_MEASURES))
    skipping = [name for name, each in parsed.items() if _skips_unjudged(each)]
    if skipping and any(len(hits) >= depth for hits in run.values()):
        sys.stderr.write(
            f"{', '.join(skipping)}: only judged passages among the first {depth:,} hits count; "
            "use --depth to rank more\n"
        )
