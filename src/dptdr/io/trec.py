"""Read and write qrels and runs in the formats of TREC and BEIR.

A line of qrels is ``query-id TAB corpus-id TAB score`` (BEIR, with or without a header) or
``query-id 0 passage-id grade`` (TREC, separated by spaces or tabs). A line of a run is
``query-id Q0 passage-id rank score tag``.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dptdr.errors import DataError, EvaluationError
from dptdr.io.atomic import atomic_file
from dptdr.io.lines import decode_line, id_fault, integer, raw_lines, text_lines
from dptdr.records import Hit, Judgement, Qrels, Run

QRELS_HEADER = ("query-id", "corpus-id", "score")
RUN_LAYOUT = "query-id Q0 passage-id rank score tag"
LARGEST_GRADE = 1_000_000
"""Grades are limited because trec_eval allocates 8 bytes per grade up to the largest."""
LARGEST_SCORE = float(np.finfo(np.float32).max)
"""trec_eval compares scores in single precision."""


_COLUMNS = (
    ("query-id", "qid", "query"),
    ("corpus-id", "passage-id", "doc-id", "document-id", "docid", "pid"),
    ("score", "grade", "relevance", "label", "rel"),
)
"""Names of the columns of qrels, in their order."""


def _header_names(line: bytes) -> list[str]:
    fields = line.decode("utf-8", "replace").lower().split("\t")
    return [field.strip().replace("_", "-") for field in fields]


def is_qrels_header(line: bytes) -> bool:
    """Check whether the first line of a qrels file is a header."""
    names = _header_names(line)
    return "score" in (names[0], names[-1]) or "query-id" in names


def check_header(line: bytes, *, path: Path) -> None:
    """Reject a header whose columns are in another order: they are read by position.

    Raises:
        DataError: If query, passage and grade are not in this order.
    """
    names = _header_names(line)
    # TREC's second column of four has no meaning.
    places = (0, len(names) - 2, len(names) - 1)
    for known, place in zip(_COLUMNS, places, strict=True):
        if any(name in known and names.index(name) != place for name in names):
            raise DataError(
                "expected columns in the order query-id, corpus-id, score, got "
                f"{', '.join(names)[:100]}",
                path=path,
                line=1,
            )


def parse_judgement(line: bytes, *, path: Path, number: int) -> Judgement:
    """Parse a line of a qrels file, with three columns (BEIR) or four (TREC).

    Raises:
        DataError: If the line is malformed.
    """
    text = decode_line(line, path=path, number=number)
    fields = text.split("\t") if text.count("\t") in (2, 3) else text.split()
    if len(fields) not in (3, 4) or (len(fields) == 3 and "\t" not in text):
        raise DataError(
            "expected 3 fields separated by tabs (query-id, corpus-id, score) or 4 fields "
            f"(query-id, 0, passage-id, grade), got {len(fields)}: {text[:80]!r}",
            path=path,
            line=number,
        )
    query_id, passage_id, grade = fields[0], fields[-2], fields[-1]
    for name, value in zip(QRELS_HEADER, (query_id, passage_id), strict=False):
        fault = id_fault(value)
        if fault:
            raise DataError(fault, path=path, line=number, field=name)
    return Judgement(
        query_id,
        passage_id,
        integer(grade, path=path, number=number, field="score", bound=LARGEST_GRADE),
    )


def judgements(path: Path) -> Iterator[tuple[int, Judgement]]:
    """Yield the judgements of a qrels file with their line numbers; the header is optional.

    Raises:
        DataError: If the file is missing, a line is malformed, or there are no judgements.
    """
    path = Path(path)
    any_judgement = False
    for number, line in raw_lines(path):
        if number == 1 and is_qrels_header(line):
            check_header(line, path=path)
            continue
        any_judgement = True
        yield number, parse_judgement(line, path=path, number=number)
    if not any_judgement:
        raise DataError("the file contains no judgements", path=path)


def read_qrels(path: Path) -> Qrels:
    """Read a qrels file.

    Raises:
        DataError: If the file is missing, a line is malformed, or a pair has conflicting grades.
    """
    return gather_qrels(judgements(path), path=path)


def gather_qrels(lines: Iterable[tuple[int, Judgement]], *, path: Path | str) -> Qrels:
    """Return the judgements of numbered lines by query; see :func:`read_qrels`."""
    qrels: Qrels = {}
    for number, (query_id, passage_id, grade) in lines:
        earlier = qrels.setdefault(query_id, {}).setdefault(passage_id, grade)
        if earlier != grade:
            raise DataError(
                f"query '{query_id}' and passage '{passage_id}' have conflicting grades {earlier} "
                f"and {grade}; keep one",
                path=path,
                line=number,
            )
    return qrels


class RunLine(NamedTuple):
    """A line of a run file."""

    query_id: str
    passage_id: str
    rank: int
    score: float


def parse_run_line(text: str, *, path: Path, line: int) -> RunLine:
    """Parse a line of a run file, with fields separated by spaces or tabs.

    Raises:
        DataError: If there are not six fields, the rank is not a non-negative integer, or the
            score is not finite.
    """
    fields = text.split()
    if len(fields) != 6:
        raise DataError(
            f"expected 6 fields ({RUN_LAYOUT}), got {len(fields)}", path=path, line=line
        )
    query_id, _, passage_id, rank_text, score_text, _ = fields
    fault = id_fault(query_id) or id_fault(passage_id)
    if fault:
        raise DataError(fault, path=path, line=line)
    rank = integer(rank_text, path=path, number=line, field="rank")
    if rank < 0:
        raise DataError(
            f"expected a rank of at least 0, got {rank}", path=path, line=line, field="rank"
        )
    try:
        # float() would also accept "1_0" and digits of other scripts.
        score = math.nan if "_" in score_text or not score_text.isascii() else float(score_text)
    except ValueError:
        score = math.nan
    if not abs(score) <= LARGEST_SCORE:
        raise DataError(
            f"expected a finite number in single precision, got '{score_text[:40]}'",
            path=path,
            line=line,
            field="score",
        )
    return RunLine(query_id, passage_id, rank, score)


def iterate_run_lines(path: Path) -> Iterator[tuple[int, RunLine]]:
    """Yield the lines of a run file with their line numbers.

    Raises:
        DataError: If the file is missing or empty, or a line is malformed.
    """
    number = 0
    for number, text in text_lines(path):
        yield number, parse_run_line(text, path=path, line=number)
    if not number:
        raise DataError("expected a run, but the file is empty", path=path)


def order_hits(lines: Sequence[RunLine]) -> list[Hit]:
    """Sort a query's hits by descending score, then by rank, then by file order."""
    ordered = sorted(lines, key=lambda entry: (-entry.score, entry.rank))
    return [Hit(entry.passage_id, entry.score) for entry in ordered]


def read_run(path: Path) -> Run:
    """Read a run file; a query's lines need not be contiguous.

    Raises:
        DataError: If the file is missing, a line is malformed, or a query lists a passage twice.
    """
    path = Path(path)
    lines: dict[str, list[RunLine]] = {}
    seen: dict[str, set[str]] = {}
    for number, entry in iterate_run_lines(path):
        passages = seen.setdefault(entry.query_id, set())
        if entry.passage_id in passages:
            raise DataError(
                f"query '{entry.query_id}' lists passage '{entry.passage_id}' twice; keep each "
                "passage once per query",
                path=path,
                line=number,
            )
        passages.add(entry.passage_id)
        lines.setdefault(entry.query_id, []).append(entry)
    return {query_id: order_hits(entries) for query_id, entries in lines.items()}


def write_run(path: Path, run: Mapping[str, Sequence[Hit]], *, tag: str) -> None:
    """Write a run file atomically.

    Tools break ties differently, and trec_eval compares scores in single precision. Tied scores are
    therefore written as successively smaller float32 values, so that every tool sees the order of
    this run.

    Args:
        run: Query id to hits, best first.
        tag: Name of the system, the last field of each line.

    Raises:
        EvaluationError: If an id or the tag is empty or contains whitespace, a score is not
            finite, or scores are not in descending order; nothing is written.
    """
    with atomic_file(Path(path)) as handle:
        for query_id, hits in run.items():
            handle.write(format_run_lines(query_id, hits, tag=tag))


def format_run_lines(query_id: str, hits: Iterable[Hit], *, tag: str) -> bytes:
    """Format the lines of a query in a run file; see :func:`write_run`."""
    _check_token(query_id, what="query id")
    _check_token(tag, what="tag")
    parts: list[str] = []
    previous_written, previous_score = math.inf, math.inf
    for rank, hit in enumerate(hits, start=1):
        _check_token(hit.passage_id, what="passage id")
        score = float(hit.score)
        if not abs(score) <= LARGEST_SCORE:
            raise EvaluationError(
                f"query '{query_id}', passage '{hit.passage_id}': expected a finite score in "
                f"single precision, got {score}"
            )
        if score > previous_score:
            raise EvaluationError(
                f"query '{query_id}', rank {rank}: score {score} is higher than the previous score "
                f"{previous_score}; sort hits by descending score"
            )
        previous_score = score
        written = score
        if not np.float32(written) < np.float32(previous_written):
            written = float(np.nextafter(np.float32(previous_written), np.float32(-np.inf)))
        previous_written = written
        parts.append(f"{query_id} Q0 {hit.passage_id} {rank} {written!r} {tag}\n")
    return "".join(parts).encode("utf-8")


def _check_token(value: str, *, what: str) -> None:
    if not value or value.split() != [value]:
        raise EvaluationError(
            f"{what} {value!r}: expected a non-empty string without whitespace in a run file; "
            "rename it in the data"
        )
