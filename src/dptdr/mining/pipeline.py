"""Merge runs into negatives, query by query, in resumable blocks.

Memory holds one block of queries, and the id and hash tables of corpus and judgements.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from dptdr.errors import NegativesError
from dptdr.io.resumable import ResumableFile
from dptdr.mining.candidates import find_candidates
from dptdr.mining.counting import (
    MiningInputs,
    PassageRows,
    QueryState,
    count_dropped,
    count_negative,
)
from dptdr.mining.false_negatives import removal_reason
from dptdr.mining.records import MinedQuery, Negative, format_record
from dptdr.mining.settings import MiningSettings
from dptdr.mining.statistics import SourceCounts, Statistics, nothing_found
from dptdr.mining.teachers import Pair, Teacher
from dptdr.records import Query


def mine(
    inputs: MiningInputs,
    settings: MiningSettings,
    *,
    out: Path,
    work: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> Statistics:
    """Mine negatives to a file, resuming an interrupted call.

    Args:
        out: Output file, written only when mining is complete.
        work: Folder for partial results; existing ones must come from the same inputs and settings.

    Raises:
        NegativesError: If a source ranks no judged query, or no negatives are found. Finished work
            stays in the folder.
    """
    _check_runs(inputs)
    file = ResumableFile(work)
    try:
        statistics = (
            Statistics.from_json(file.extra)
            if file.extra is not None
            else Statistics(sources={source.name: SourceCounts() for source in settings.sources})
        )
        total = inputs.judgements.queries
        for block in inputs.blocks(settings.block_queries, skip=file.blocks):
            begun = (_begin(q, inputs, settings=settings, statistics=statistics) for q in block)
            works = [work for work in begun if work is not None]
            if inputs.teacher is not None:
                _score(works, inputs, settings=settings, statistics=statistics)
            lines = [_finish(w, inputs, settings=settings, statistics=statistics) for w in works]
            file.append_block(b"".join(lines), extra=statistics.as_json())
            if on_progress is not None:
                on_progress(min(file.blocks * settings.block_queries, total), total)
        if statistics.negatives == 0:
            raise NegativesError(nothing_found(statistics))
        file.finish(out)
    finally:
        file.close()
    return statistics


def score_pairs(
    teacher: Teacher, pairs: Sequence[tuple[Query, int]], *, rows: PassageRows
) -> list[float]:
    """Score queries with corpus rows, using the teacher."""
    if not pairs:
        return []
    return teacher.score(
        [
            Pair(query.id, query.text, row, rows.at(row).content if teacher.needs_texts else "")
            for query, row in pairs
        ]
    )


def _check_runs(inputs: MiningInputs) -> None:
    judged = inputs.judgements.query_hashes()
    for name, run in inputs.runs.items():
        if not np.isin(run.query_hashes(), judged).any():
            raise NegativesError(
                f"source '{name}' ranks none of the {inputs.judgements.queries} judged queries; "
                "use a run over the queries of this split"
            )


def _begin(
    query: Query, inputs: MiningInputs, *, settings: MiningSettings, statistics: Statistics
) -> QueryState | None:
    judged = inputs.judgements.of(query.id)
    assert judged is not None
    rows, grades = judged
    # Deduplicated, in judgement order.
    positives = list(dict.fromkeys(rows[(grades >= settings.min_grade) & (rows >= 0)].tolist()))
    if not positives:
        statistics.without_positive += 1
        return None
    statistics.queries += 1
    candidates = find_candidates(
        query.id,
        positives=positives,
        banned=inputs.corpus.rows_of([query.id] if query.id in inputs.own else []),
        runs=inputs.runs,
        sources=settings.sources,
        corpus=inputs.corpus,
        seed=settings.seed,
    )
    for name, hits in candidates.sources.items():
        counts = statistics.sources[name]
        counts.queries += 1
        counts.candidates += len(hits.order)
        counts.blocked += hits.blocked
    return QueryState(query=query, positives=positives, candidates=candidates, positive_scores=[])


def _score(
    works: Sequence[QueryState],
    inputs: MiningInputs,
    *,
    settings: MiningSettings,
    statistics: Statistics,
) -> None:
    """Score positives, then candidates until each source has enough negatives."""
    teacher = inputs.teacher
    assert teacher is not None
    pairs = [(work.query, row) for work in works for row in work.positives]
    scores = iter(score_pairs(teacher, pairs, rows=inputs.passages))
    for work in works:
        work.positive_scores = list(itertools.islice(scores, len(work.positives)))
        if settings.filtering.relative_margin is not None and work.reference(settings) <= 0:
            statistics.margin_not_applied += 1
    wanted_of = {source.name: source.num_negatives for source in settings.sources}
    while True:
        wanted = [(work, text) for work in works for text in work.candidates.wanted(wanted_of)]
        if not wanted:
            return
        pairs = [(work.query, work.candidates.row_of(text)) for work, text in wanted]
        scored = score_pairs(teacher, pairs, rows=inputs.passages)
        for (work, text), score in zip(wanted, scored, strict=True):
            work.candidates.scores[text] = score
            reason = removal_reason(
                score, positive=work.reference(settings), settings=settings.filtering
            )
            if reason is not None:
                work.candidates.dropped[text] = reason
                count_dropped(work, text, inputs, settings=settings, statistics=statistics)


def _finish(
    work: QueryState, inputs: MiningInputs, *, settings: MiningSettings, statistics: Statistics
) -> bytes:
    candidates, corpus = work.candidates, inputs.corpus
    texts = settings.output == "tevatron"
    negatives: list[Negative] = []
    reference = work.reference(settings) if work.positive_scores else 0.0
    for choice in candidates.chosen(
        {source.name: source.num_negatives for source in settings.sources}
    ):
        negatives.append(
            Negative(
                id=corpus.ids[choice.row],
                sources=choice.sources,
                teacher=candidates.scores.get(choice.text),
                passage=inputs.passages.at(choice.row) if texts else None,
            )
        )
        length = int(corpus.characters[choice.row])
        count_negative(work, choice, length=length, reference=reference, statistics=statistics)
    if not negatives:
        statistics.without_negative_example = statistics.without_negative_example or work.query.id
        statistics.without_negative += 1
    for row in work.positives:
        length = int(corpus.characters[row])
        key = f"{work.query.id}\t{row}"
        statistics.positive_characters.offer(key, partial(int, length))
    mined = MinedQuery(
        query_id=work.query.id,
        query=work.query.text,
        positives=[corpus.ids[row] for row in work.positives],
        positive_teacher=work.positive_scores,
        negatives=negatives,
        positive_passages=[inputs.passages.at(row) for row in work.positives] if texts else [],
    )
    return format_record(mined, output=settings.output)
