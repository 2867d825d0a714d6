"""Top-k accuracy of open-domain question answering, as DPR measures it on Natural Questions.

A question is answered at k if one of the first k passages contains an answer. Passages are streamed
and matched in several processes; only the run, the questions and one block of passages are in
memory.
"""

import ast
import csv
import multiprocessing
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from dptdr.errors import DataError, EvaluationError
from dptdr.evaluation.protocols.answers import Answer, Matching, contains_answer, prepare_answer
from dptdr.io.beir import parse_query
from dptdr.io.lines import READ_FAULTS, open_bytes, raw_lines
from dptdr.io.processes import DIED
from dptdr.records import Run

CUTOFFS = (5, 20, 100)
_BLOCK_PASSAGES = 4_000
# Passages of 100 words are far smaller; the csv module's default limit is 128 KiB.
_LARGEST_FIELD = 2**24


class Question(NamedTuple):
    """A question with its answers (texts, or regular expressions)."""

    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class NqResult:
    """Answer accuracy of a run.

    Attributes:
        measures: ``top-5``, ``top-20``, ``top-100``: fraction of questions answered within k
            passages.
        per_query: Measure name to query id to 0 or 1.
        queries: Number of questions, including those missing from the run.
        unanswered: Questions missing from the run; each counts 0.
        passages_matched: Number of distinct passages searched.
    """

    measures: dict[str, float]
    per_query: dict[str, dict[str, float]]
    queries: int
    unanswered: int
    passages_matched: int


def read_questions(path: Path) -> list[Question]:
    """Read DPR's question file: ``question TAB ["answer", "another"]``, no header.

    Raises:
        DataError: If the file is missing or empty, or a line is malformed; names file and line.
    """
    path = Path(path)
    questions: list[Question] = []
    for line, row in _tab_rows(path):
        if len(row) != 2:
            raise DataError(
                f"expected question and answers separated by one tab, got {len(row)} fields",
                path=path,
                line=line,
            )
        try:
            answers = ast.literal_eval(row[1])
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            answers = None
        if not isinstance(answers, list) or not all(isinstance(text, str) for text in answers):
            raise DataError(
                f'expected a list of answers such as ["Paris"], got {row[1][:60]}',
                path=path,
                line=line,
                field="answers",
            )
        questions.append(Question(row[0], tuple(answers)))
    if not questions:
        raise DataError("expected questions, got an empty file", path=path)
    return questions


def read_passage_texts(path: Path) -> Iterator[tuple[str, str]]:
    """Stream ids and texts of ``psgs_w100.tsv`` (id, text, title) or a ``corpus.jsonl``.

    Like DPR, strip quotation marks around texts.

    Args:
        path: Plain or gzipped file; its extension determines the format.

    Raises:
        DataError: If the file is missing or a line is malformed; names file and line.
    """
    path = Path(path)
    if path.name.removesuffix(".gz").endswith(".jsonl"):
        for passage_id, text in _jsonl_texts(path):
            yield passage_id, text.strip('"')
        return
    for line, row in _tab_rows(path):
        if len(row) != 3:
            raise DataError(
                f"expected id, text and title separated by tabs, got {len(row)} fields",
                path=path,
                line=line,
            )
        if line > 1 or row[0] != "id":
            yield row[0], row[1].strip('"')


def match_query_ids(
    questions: Sequence[Question], *, queries: Path, ranked: Collection[str]
) -> list[str]:
    """Find each question's query id by its text.

    Args:
        ranked: Query ids of the run, preferred if several queries have the same text.

    Returns:
        Ids in question order; repeated texts use their ids in turn.

    Raises:
        DataError: If the file is missing or malformed, or a question has no query.
    """
    ids: dict[str, deque[str]] = {}
    others: dict[str, list[str]] = {}
    for query_id, text in _jsonl_texts(Path(queries)):
        if query_id in ranked:
            ids.setdefault(text.strip(), deque()).append(query_id)
        else:
            others.setdefault(text.strip(), []).append(query_id)
    for text, left in others.items():
        ids.setdefault(text, deque()).extend(left)
    matched: list[str] = []
    for question in questions:
        found = ids.get(question.text.strip())
        if not found:
            raise DataError(f"no query has the text of question '{question.text}'", path=queries)
        matched.append(found.popleft())
    return matched


def prepare_questions(
    questions: Sequence[Question], *, matching: Matching
) -> tuple[list[tuple[Answer, ...]], list[str]]:
    """Prepare the answers of all questions.

    Returns:
        Prepared answers, one tuple per question; and descriptions of answers that match every
        passage or none, with their questions.
    """
    prepared: list[tuple[Answer, ...]] = []
    faults: list[str] = []
    for number, question in enumerate(questions, start=1):
        where = f"question {number} ({question.text[:60]})"
        answers: list[Answer] = []
        for text in question.answers:
            answer, fault = prepare_answer(text, matching=matching)
            answers.append(answer)
            if fault is not None:
                faults.append(f"{where}: {fault}")
        if not answers:
            faults.append(f"{where}: the list of answers is empty, so no passage matches")
        prepared.append(tuple(answers))
    return prepared, faults


def evaluate_nq(
    run: Run,
    answers: Sequence[Sequence[Answer]],
    *,
    query_ids: Sequence[str],
    passages: Iterable[tuple[str, str]],
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> NqResult:
    """Compute top-k accuracy.

    Args:
        query_ids: The run's id for each question, in question order.
        passages: Ids and texts, read once; must cover the run's passages.
        workers: Number of matching processes; does not affect the result.

    Raises:
        EvaluationError: If the run has unknown queries, none of the questions, a passage twice for
            a query, or passages that are not in ``passages``.

    Source:
        Karpukhin et al., DPR (EMNLP 2020), top-k accuracy by answer match. Differs: a question
        missing from the run counts 0 (DPR always ranks every question).
    """
    rows = {query_id: row for row, query_id in enumerate(query_ids)}
    wanted, wanted_ranks = _wanted_passages(run, rows=rows)
    found = np.zeros((len(query_ids), CUTOFFS[-1]), dtype=bool)
    total = len(wanted_ranks)
    tasks = _tasks(passages, wanted)
    for places, hits, done in _match(tasks, answers=answers, workers=workers):
        for (row, rank), hit in zip(places, hits, strict=True):
            found[row, rank] = hit
        if on_progress is not None:
            on_progress(total - done, total)
    if wanted:
        raise EvaluationError(
            f"{len(wanted)} of the run's {total} passages are not in the passage file, such as "
            f"'{next(iter(wanted))}'; use the file the run was made from"
        )
    return _accuracy(found, query_ids=query_ids, run=run, passages_matched=total)


class _Task(NamedTuple):
    """A block of passages to match: texts, and the places in the run that refer to each."""

    texts: list[str]
    places: list[list[tuple[int, int]]]
    left: int


def _wanted_passages(
    run: Run, *, rows: dict[str, int]
) -> tuple[dict[str, list[tuple[int, int]]], set[str]]:
    """Map each passage id to its (question row, rank from 0) places, and collect all ids."""
    unknown = [query_id for query_id in run if query_id not in rows]
    if unknown:
        raise EvaluationError(
            f"{len(unknown)} of the run's {len(run)} queries are not questions, such as "
            f"'{unknown[0]}'; expected question numbers from 0, in file order, unless a query file "
            "maps ids to questions"
        )
    wanted: dict[str, list[tuple[int, int]]] = {}
    for query_id, hits in run.items():
        if len({hit.passage_id for hit in hits}) != len(hits):
            raise EvaluationError(f"query '{query_id}' lists a passage twice; list it once")
        for rank, hit in enumerate(hits[: CUTOFFS[-1]]):
            wanted.setdefault(hit.passage_id, []).append((rows[query_id], rank))
    if not wanted:
        raise EvaluationError("expected passages for at least one question, got none in the run")
    return wanted, set(wanted)


def _tasks(
    passages: Iterable[tuple[str, str]], wanted: dict[str, list[tuple[int, int]]]
) -> Iterator[_Task]:
    """Yield blocks of wanted passages, removing them from ``wanted``."""
    hits = ((text, wanted.pop(key)) for key, text in passages if key in wanted)
    while block := list(islice(hits, _BLOCK_PASSAGES)):
        yield _Task([text for text, _ in block], [places for _, places in block], len(wanted))


def _match(
    tasks: Iterator[_Task], *, answers: Sequence[Sequence[Answer]], workers: int
) -> Iterator[tuple[list[tuple[int, int]], list[bool], int]]:
    """Yield places, whether each is answered, and the number of passages left to read."""
    with _pool(answers, workers=workers) as pool:
        pending: deque[tuple[_Task, Future[list[bool]] | list[bool]]] = deque()
        while True:
            # Enough to keep all processes busy, but few enough to bound memory.
            while len(pending) < 2 * workers and (task := next(tasks, None)) is not None:
                rows = [[row for row, _ in places] for places in task.places]
                if pool is None:
                    pending.append((task, _match_block(task.texts, rows=rows, answers=answers)))
                else:
                    pending.append((task, pool.submit(_match_in_worker, task.texts, rows)))
            if not pending:
                return
            task, outcome = pending.popleft()
            hits = outcome if isinstance(outcome, list) else outcome.result()
            yield [place for places in task.places for place in places], hits, task.left


def _match_block(
    texts: Sequence[str], *, rows: Sequence[Sequence[int]], answers: Sequence[Sequence[Answer]]
) -> list[bool]:
    return [
        contains_answer(text, answers[row])
        for text, named in zip(texts, rows, strict=True)
        for row in named
    ]


_worker_answers: list[Sequence[Sequence[Answer]]] = []


def _start_worker(answers: Sequence[Sequence[Answer]]) -> None:
    _worker_answers[:] = [answers]


def _match_in_worker(texts: Sequence[str], rows: Sequence[Sequence[int]]) -> list[bool]:
    return _match_block(texts, rows=rows, answers=_worker_answers[0])


@contextmanager
def _pool(
    answers: Sequence[Sequence[Answer]], *, workers: int
) -> Iterator[ProcessPoolExecutor | None]:
    if workers == 1:
        yield None
        return
    # Spawn, since forking a process with threads (torch, BLAS) may deadlock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        max_workers=workers, mp_context=context, initializer=_start_worker, initargs=(answers,)
    ) as pool:
        try:
            yield pool
        except BrokenProcessPool:
            raise EvaluationError(
                f"a process that matches answers died ({DIED}); use fewer threads if memory is low"
            ) from None


def _accuracy(
    found: Bool[np.ndarray, "questions depth"],
    *,
    query_ids: Sequence[str],
    run: Run,
    passages_matched: int,
) -> NqResult:
    per_query = {
        f"top-{cutoff}": dict(
            zip(query_ids, found[:, :cutoff].any(axis=1).astype(float).tolist(), strict=True)
        )
        for cutoff in CUTOFFS
    }
    return NqResult(
        measures={name: sum(values.values()) / len(values) for name, values in per_query.items()},
        per_query=per_query,
        queries=len(query_ids),
        unanswered=sum(not run.get(query_id) for query_id in query_ids),
        passages_matched=passages_matched,
    )


def _tab_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line numbers and fields of a tab-separated file with csv quoting, as in DPR."""
    csv.field_size_limit(_LARGEST_FIELD)
    with open_bytes(path) as raw, TextIOWrapper(raw, encoding="utf-8-sig", newline="") as handle:
        reader = csv.reader(handle, delimiter="\t")
        try:
            for row in reader:
                if row:
                    yield reader.line_num, row
        except csv.Error as error:
            raise DataError(str(error), path=path, line=reader.line_num) from None
        except UnicodeDecodeError as error:
            raise DataError(
                f"expected UTF-8 text, {error.reason}", path=path, line=reader.line_num + 1
            ) from None
        except READ_FAULTS as error:
            raise DataError(
                f"cannot be read: {error}", path=path, line=reader.line_num + 1
            ) from None


def _jsonl_texts(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in raw_lines(path):
        query = parse_query(line, path=path, number=number)
        yield query.id, query.text
