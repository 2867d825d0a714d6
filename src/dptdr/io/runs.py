"""Run files in the TREC format: ``query-id Q0 passage-id rank score tag``, one hit a line."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dptdr.errors import DataError, EvaluationError
from dptdr.io.atomic import atomic_file
from dptdr.io.textlines import numbered_lines
from dptdr.records import Hit, Run

LAYOUT = "query-id Q0 passage-id rank score tag"


class RunLine(NamedTuple):
    """One line of a run file."""

    query_id: str
    passage_id: str
    rank: int
    score: float


def parse_run_line(text: str, *, path: Path, line: int) -> RunLine:
    """Parse one line of a run file.

    Args:
        text: The line; fields are separated by blanks or tabs.
        path: The file, for the error message.
        line: The line's number, for the error message.

    Returns:
        The parsed line.

    Raises:
        DataError: If there are not six fields, the rank is no whole number of at least 0, or the
            score is no finite number.
    """
    fields = text.split()
    if len(fields) != 6:
        raise DataError(f"expected 6 fields ({LAYOUT}), found {len(fields)}", path=path, line=line)
    query_id, _, passage_id, rank_text, score_text, _ = fields
    if not (rank_text.isascii() and rank_text.isdigit()):
        raise DataError(
            f"expected a whole number, found '{rank_text}'", path=path, line=line, field="rank"
        )
    try:
        score = float(score_text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise DataError(
            f"expected a finite number, found '{score_text}'", path=path, line=line, field="score"
        )
    return RunLine(query_id, passage_id, int(rank_text), score)


def iterate_run_lines(path: Path) -> Iterator[tuple[int, RunLine]]:
    """Yield the lines of a run file as they stand, with their numbers.

    Args:
        path: The run file.

    Yields:
        Line number, counted from 1, and the parsed line.

    Raises:
        DataError: If the file is missing or a line is broken; names file and line.
    """
    for number, text in numbered_lines(path):
        yield number, parse_run_line(text, path=path, line=number)


def order_hits(lines: Sequence[RunLine]) -> list[Hit]:
    """Return one query's hits, best first: by score, equal scores by rank, then as they came."""
    ordered = sorted(lines, key=lambda entry: (-entry.score, entry.rank))
    return [Hit(entry.passage_id, entry.score) for entry in ordered]


def read_run(path: Path) -> Run:
    """Read a whole run file.

    Args:
        path: The run file; a query's lines need not stand together.

    Returns:
        Query id to hits, best first: by score as every TREC tool does, equal scores by rank.
        Queries keep the order of their first lines.

    Raises:
        DataError: If the file is missing, a line is broken, or a query lists a passage twice;
            names file and line.
    """
    path = Path(path)
    lines: dict[str, list[RunLine]] = {}
    seen: dict[str, set[str]] = {}
    for number, entry in iterate_run_lines(path):
        passages = seen.setdefault(entry.query_id, set())
        if entry.passage_id in passages:
            raise DataError(
                f"query '{entry.query_id}' lists passage '{entry.passage_id}' a second time; "
                "a run names each passage once per query",
                path=path,
                line=number,
            )
        passages.add(entry.passage_id)
        lines.setdefault(entry.query_id, []).append(entry)
    return {query_id: order_hits(entries) for query_id, entries in lines.items()}


def write_run(path: Path, run: Mapping[str, Sequence[Hit]], *, tag: str) -> None:
    """Write a run file, atomically.

    Tools that read run files order equal scores each in its own way, and trec_eval compares in
    single precision. So a score that is not below the one before it is written as the next smaller
    single-precision number: the file means this run's order to every tool.

    Args:
        path: Where the file shall stand.
        run: Query id to hits, best first.
        tag: Name of the system, the last field of each line.

    Raises:
        EvaluationError: If an id or the tag is empty or holds white space, a score is not finite,
            or scores rise along a ranking; nothing is written.
    """
    with atomic_file(Path(path)) as handle:
        for query_id, hits in run.items():
            handle.write(format_run_lines(query_id, hits, tag=tag))


def format_run_lines(query_id: str, hits: Iterable[Hit], *, tag: str) -> bytes:
    """Return one query's lines of a run file; see :func:`write_run`."""
    _check_token(query_id, what="query id")
    _check_token(tag, what="tag")
    parts: list[str] = []
    previous_written, previous_score = math.inf, math.inf
    for rank, hit in enumerate(hits, start=1):
        _check_token(hit.passage_id, what="passage id")
        score = float(hit.score)
        if not math.isfinite(score):
            raise EvaluationError(
                f"query '{query_id}', passage '{hit.passage_id}': expected a finite score, "
                f"found {score}"
            )
        if score > previous_score:
            raise EvaluationError(
                f"query '{query_id}', rank {rank}: the score {score} is above the one before it, "
                f"{previous_score}; give hits best first"
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
            f"{what} {value!r} cannot stand in a run file: expected text without white space; "
            "rename it in the data"
        )
