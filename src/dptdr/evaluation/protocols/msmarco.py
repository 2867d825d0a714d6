"""Official measures of MS MARCO passage ranking.

The official script averages MRR over the queries of the qrels. The variant used for published
systems also prints a "recall" that is really a hit rate, averaged over the queries of the run.
trec_eval's recall differs from both if a query has several relevant passages. All are computed
here, and a run that does not match the qrels is rejected rather than scored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dptdr.errors import DataError, EvaluationError
from dptdr.evaluation.measures import evaluate
from dptdr.io.lines import text_lines
from dptdr.io.trec import parse_run_line
from dptdr.records import Hit, Qrels

MRR_CUTOFF = 10
HIT_CUTOFFS = (50, 1000)
LARGEST_RANK = 1000

DEFINITIONS = {
    "MRR@10": "sum of 1/rank of the first relevant passage within rank 10, divided by the number "
    "of queries in the qrels (official)",
    "hit_rate@50": "share of the queries in the run with a relevant passage within rank 50",
    "hit_rate@1000": "share of the queries in the run with a relevant passage within rank 1000; "
    "the official script's variants print it as recall@1000",
    "R@50": "trec_eval's recall within rank 50, mean over the queries in the qrels",
    "R@1000": "trec_eval's recall within rank 1000, mean over the queries in the qrels",
}


@dataclass(frozen=True, kw_only=True)
class MsMarcoResult:
    """Official measures of a run.

    Attributes:
        measures: Name to value; see :data:`DEFINITIONS`.
        per_query: Name to query id to value; hit rates cover the run's queries only.
        queries: Number of queries in the qrels.
        ranked: Number of queries in the run.
        deepest_rank: Largest rank in the run; deeper measures are lower bounds.
    """

    measures: dict[str, float]
    per_query: dict[str, dict[str, float]]
    queries: int
    ranked: int
    deepest_rank: int


def read_ranks(path: Path) -> dict[str, dict[int, str]]:
    """Read a run by its ranks, in MS MARCO's three-column or TREC's six-column format.

    Args:
        path: Lines ``query-id TAB passage-id TAB rank``, or a TREC run file.

    Raises:
        DataError: If the file is missing, empty or malformed, a rank repeats within a query or is
            not from 1 to 1000, or a query lists a passage twice; names file and line.
    """
    path = Path(path)
    ranks: dict[str, dict[int, str]] = {}
    seen: dict[str, set[str]] = {}
    for number, text in text_lines(path):
        query_id, passage_id, rank = _parse(text, path=path, line=number)
        if not 1 <= rank <= LARGEST_RANK:
            raise DataError(
                f"expected a rank from 1 to {LARGEST_RANK}, got {rank}",
                path=path,
                line=number,
                field="rank",
            )
        by_rank = ranks.setdefault(query_id, {})
        passages = seen.setdefault(query_id, set())
        if rank in by_rank:
            raise DataError(
                f"query '{query_id}' has rank {rank} twice, for '{by_rank[rank]}' and "
                f"'{passage_id}'; number the ranks of a query from 1, each once",
                path=path,
                line=number,
            )
        if passage_id in passages:
            raise DataError(
                f"query '{query_id}' ranks passage '{passage_id}' a second time; keep its best "
                "rank",
                path=path,
                line=number,
            )
        by_rank[rank] = passage_id
        passages.add(passage_id)
    if not ranks:
        raise DataError("expected a run, got an empty file", path=path)
    return ranks


def evaluate_msmarco(ranks: Mapping[str, Mapping[int, str]], qrels: Qrels) -> MsMarcoResult:
    """Compute the official measures.

    Args:
        ranks: Query id to rank (from 1, without gaps) to passage id; see :func:`read_ranks`.

    Raises:
        EvaluationError: If a query of the run is not in the qrels, ranks have a gap, or a grade is
            below 1 (the official script would count it as relevant).

    Source:
        The official script of MS MARCO passage ranking. Differs: it treats missing ranks as passage
        0, which exists, and handles unknown queries inconsistently, ignoring them in the MRR but
        counting them in the hit rate. Both are rejected here.
    """
    _check_fit(ranks, qrels)
    run = {
        query_id: [Hit(by_rank[rank], float(-rank)) for rank in sorted(by_rank)]
        for query_id, by_rank in ranks.items()
    }
    first = {query_id: _first_relevant(hits, qrels[query_id]) for query_id, hits in run.items()}
    per_query = {
        f"MRR@{MRR_CUTOFF}": {
            query_id: 1 / first[query_id] if 0 < first.get(query_id, 0) <= MRR_CUTOFF else 0.0
            for query_id in qrels
        }
    }
    for cutoff in HIT_CUTOFFS:
        per_query[f"hit_rate@{cutoff}"] = {
            query_id: float(0 < rank <= cutoff) for query_id, rank in first.items()
        }
    recalls = evaluate(run, qrels, measures=[f"R@{cutoff}" for cutoff in HIT_CUTOFFS])
    per_query |= recalls.per_query
    return MsMarcoResult(
        measures={name: sum(values.values()) / len(values) for name, values in per_query.items()},
        per_query=per_query,
        queries=len(qrels),
        ranked=len(run),
        deepest_rank=max(len(hits) for hits in run.values()),
    )


def _parse(text: str, *, path: Path, line: int) -> tuple[str, str, int]:
    fields = text.split()
    if len(fields) == 6:
        entry = parse_run_line(text, path=path, line=line)
        return entry.query_id, entry.passage_id, entry.rank
    if len(fields) != 3:
        raise DataError(
            "expected 3 fields (query-id, passage-id, rank) or the 6 of a TREC run, "
            f"got {len(fields)}",
            path=path,
            line=line,
        )
    if not (fields[2].isascii() and fields[2].isdigit()):
        raise DataError(
            f"expected a whole number, got '{fields[2]}'", path=path, line=line, field="rank"
        )
    return fields[0], fields[1], int(fields[2])


def _check_fit(ranks: Mapping[str, Mapping[int, str]], qrels: Qrels) -> None:
    if not qrels:
        raise EvaluationError("expected judged queries, but the qrels are empty")
    if not ranks:
        raise EvaluationError("expected a ranking, but the run is empty")
    unknown = [query_id for query_id in ranks if query_id not in qrels]
    if unknown:
        raise EvaluationError(
            f"{len(unknown)} of the run's {len(ranks)} queries are not in the qrels, such as "
            f"'{unknown[0]}'; use qrels for the same queries"
        )
    for query_id, by_rank in ranks.items():
        if max(by_rank, default=0) != len(by_rank):
            missing = next(rank for rank in range(1, max(by_rank)) if rank not in by_rank)
            raise EvaluationError(
                f"query '{query_id}' has no passage at rank {missing} but one at rank "
                f"{max(by_rank)}; expected ranks from 1 without gaps"
            )
    for query_id, grades in qrels.items():
        for passage_id, grade in grades.items():
            if grade < 1:
                raise EvaluationError(
                    f"query '{query_id}', passage '{passage_id}': expected a grade of at least 1, "
                    f"got {grade}; the official script counts every qrels line as relevant, so "
                    "remove such lines, or evaluate without --protocol"
                )


def _first_relevant(hits: list[Hit], grades: Mapping[str, int]) -> int:
    """Return the rank of the first relevant passage, 0 if there is none."""
    ranked = enumerate(hits, start=1)
    return next((rank for rank, hit in ranked if hit.passage_id in grades), 0)
