"""Inspect the contents of a BEIR folder and report all problems."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from dptdr.errors import DataError
from dptdr.io.beir import BeirFolder, parse_passage, parse_query
from dptdr.io.intarray import IntArray, as_numbers, int_array
from dptdr.io.lines import raw_lines
from dptdr.io.trec import check_header, is_qrels_header, parse_judgement

Severity: TypeAlias = Literal["error", "warning"]
Progress: TypeAlias = Callable[[int, int], None]

EXAMPLES_KEPT = 5
_LINES_PER_REPORT = 5000


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A kind of problem, with its count and first occurrences."""

    kind: str
    severity: Severity
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Statistics of text lengths in a given unit."""

    mean: float
    median: float
    percentile_95: float
    max: int


@dataclass(frozen=True, kw_only=True)
class TextStats:
    """Count and lengths of passages (title plus text) or queries."""

    count: int
    titled: int
    characters: Lengths
    words: Lengths


@dataclass(frozen=True, kw_only=True)
class SplitStats:
    """Statistics of a qrels file; ``grades`` maps a grade to the number of judgements."""

    queries: int
    judgements: int
    positives: int
    grades: dict[int, int]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The result of :func:`inspect_folder`; errors come before warnings."""

    path: str
    passages: TextStats
    queries: TextStats
    splits: dict[str, SplitStats]
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> tuple[Problem, ...]:
        """Problems that make a stage fail or its results wrong."""
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """Problems that do not affect any stage."""
        return tuple(problem for problem in self.problems if problem.severity == "warning")

    def as_json(self) -> dict[str, Any]:
        """Convert everything to plain JSON values."""
        return asdict(self)


def inspect_folder(path: Path | str, *, on_progress: Progress | None = None) -> Inspection:
    """Read a whole BEIR folder and report counts and all problems.

    Malformed lines are reported and excluded from the counts. Uses memory for the ids, plus 16
    bytes per text.

    Raises:
        DataError: If the folder or its corpus does not exist.
    """
    folder = BeirFolder(path)
    files = [folder.corpus_path, folder.queries_path]
    files += [folder.qrels_path(split) for split in folder.splits()]
    total = sum(file.stat().st_size for file in files if file.is_file())
    ledger = _Ledger(root=folder.path, total_bytes=total, on_progress=on_progress)
    passages = _read_passages(folder, ledger)
    queries = _read_queries(folder, ledger)
    splits = {
        split: _read_split(folder, split, ledger, passages=passages, queries=queries)
        for split in folder.splits()
    }
    _check_overlap(ledger, file=folder.queries_path.name, queries=queries)
    if not splits:
        ledger.add("no judgements", "warning", "qrels/: no SPLIT.tsv")
    return Inspection(
        path=str(folder.path),
        passages=passages.stats(),
        queries=queries.stats(),
        splits=splits,
        problems=ledger.problems(),
    )


@dataclass
class _Ledger:
    """Collects problems and reports progress."""

    root: Path
    total_bytes: int
    on_progress: Progress | None
    counts: Counter[tuple[str, Severity]] = field(default_factory=Counter)
    examples: dict[tuple[str, Severity], list[str]] = field(default_factory=dict)
    done_bytes: int = 0

    def add(self, kind: str, severity: Severity, example: str) -> None:
        self.counts[kind, severity] += 1
        kept = self.examples.setdefault((kind, severity), [])
        if len(kept) < EXAMPLES_KEPT:
            kept.append(example)

    def broken(self, error: DataError, file: Path) -> None:
        named = f", field '{error.field}'" if error.field else ""
        at = "" if error.line is None else f":{error.line}"
        self.add("broken line", "error", f"{self.short(file)}{at}{named}: {error.reason}")

    def short(self, file: Path) -> str:
        return file.relative_to(self.root).as_posix()

    def advance(self, number: int, line: bytes) -> None:
        self.done_bytes += len(line) + 1
        if self.on_progress is not None and number % _LINES_PER_REPORT == 0:
            self.on_progress(min(self.done_bytes, self.total_bytes), self.total_bytes)

    def problems(self) -> tuple[Problem, ...]:
        if self.on_progress is not None:
            self.on_progress(self.total_bytes, self.total_bytes)
        found = [
            Problem(
                kind=kind,
                severity=severity,
                count=count,
                examples=tuple(self.examples[kind, severity]),
            )
            for (kind, severity), count in self.counts.items()
        ]
        return tuple(sorted(found, key=lambda problem: problem.severity))


@dataclass
class _Texts:
    """Ids, lengths and hashes of the texts in a file, and the splits of queries."""

    lines: dict[str, int] = field(default_factory=dict)
    characters: IntArray = field(default_factory=int_array)
    words: IntArray = field(default_factory=int_array)
    # Python's 64-bit hash: the chance of any collision among ten million texts is 3e-6.
    hashes: IntArray = field(default_factory=int_array)
    titled: int = 0
    splits: dict[str, list[str]] = field(default_factory=dict)

    def measure(self, text: str) -> None:
        self.characters.append(len(text))
        self.words.append(len(text.split()))
        self.hashes.append(hash(text))

    def stats(self) -> TextStats:
        return TextStats(
            count=len(self.characters),
            titled=self.titled,
            characters=_lengths(self.characters),
            words=_lengths(self.words),
        )


def _lengths(values: IntArray) -> Lengths:
    if not values:
        return Lengths(mean=0.0, median=0.0, percentile_95=0.0, max=0)
    numbers = as_numbers(values)
    median, high = np.percentile(numbers, [50, 95])
    return Lengths(
        mean=round(float(numbers.mean()), 1),
        median=float(median),
        percentile_95=float(high),
        max=int(numbers.max()),
    )


def _read_passages(folder: BeirFolder, ledger: _Ledger) -> _Texts:
    file = folder.corpus_path
    texts = _Texts()
    line_of_text = int_array()
    for number, line in raw_lines(file):
        ledger.advance(number, line)
        try:
            passage = parse_passage(line, path=file, number=number)
        except DataError as error:
            ledger.broken(error, file)
            continue
        where = f"{file.name}:{number}: '{passage.id}'"
        first = texts.lines.setdefault(passage.id, number)
        if first != number:
            ledger.add("duplicate passage id", "error", f"{where} is already on line {first}")
        if not passage.content.strip():
            ledger.add("empty passage", "error", f"{where} has neither title nor text")
        elif not passage.text.strip():
            ledger.add("passage without text", "warning", f"{where} has only a title")
        texts.titled += bool(passage.title)
        texts.measure(passage.content)
        line_of_text.append(number)
    if not texts.lines:
        ledger.add("no passages", "error", f"{file.name}: no readable passages")
    _find_duplicate_texts(texts, line_of_text, ledger, file=file.name)
    return texts


def _find_duplicate_texts(
    texts: _Texts, line_of_text: IntArray, ledger: _Ledger, *, file: str
) -> None:
    if not texts.hashes:
        return
    hashes = as_numbers(texts.hashes)
    order = np.argsort(hashes, kind="stable")
    repeated = np.flatnonzero(hashes[order][1:] == hashes[order][:-1]) + 1
    # In sorted order, a duplicate's predecessor is an earlier copy in the file.
    for position in sorted(repeated, key=lambda place: int(order[place])):
        here, earlier = line_of_text[order[position]], line_of_text[order[position - 1]]
        ledger.add(
            "duplicate passage text", "warning", f"{file}:{here}: same text as on line {earlier}"
        )


def _read_queries(folder: BeirFolder, ledger: _Ledger) -> _Texts:
    file = folder.queries_path
    texts = _Texts()
    if not file.is_file():
        ledger.add("no queries", "error", f"{file.name}: no such file")
        return texts
    for number, line in raw_lines(file):
        ledger.advance(number, line)
        try:
            query = parse_query(line, path=file, number=number)
        except DataError as error:
            ledger.broken(error, file)
            continue
        where = f"{file.name}:{number}: '{query.id}'"
        first = texts.lines.setdefault(query.id, number)
        if first != number:
            ledger.add("duplicate query id", "error", f"{where} is already on line {first}")
            continue
        if not query.text.strip():
            ledger.add("empty query", "error", f"{where} has no text")
        texts.measure(query.text)
    return texts


def _read_header(line: bytes, file: Path, ledger: _Ledger) -> None:
    try:
        check_header(line, path=file)
    except DataError as error:
        ledger.broken(error, file)


def _read_split(
    folder: BeirFolder, split: str, ledger: _Ledger, *, passages: _Texts, queries: _Texts
) -> SplitStats:
    file = folder.qrels_path(split)
    grades: Counter[int] = Counter()
    best: dict[str, int] = {}
    first_line: dict[str, int] = {}
    seen: dict[tuple[str, str], int] = {}
    name = ledger.short(file)
    for number, line in raw_lines(file):
        ledger.advance(number, line)
        if number == 1 and is_qrels_header(line):
            _read_header(line, file, ledger)
            continue
        if number == 1:
            ledger.add("no header", "warning", f"{name}:1: expected a header, got a judgement")
        try:
            judgement = parse_judgement(line, path=file, number=number)
        except DataError as error:
            ledger.broken(error, file)
            continue
        query_id, passage_id, grade = judgement
        if query_id not in queries.lines:
            ledger.add("judgement of an unknown query", "error", f"{name}:{number}: '{query_id}'")
        if passage_id not in passages.lines:
            ledger.add(
                "judgement of an unknown passage", "error", f"{name}:{number}: '{passage_id}'"
            )
        _check_repeated(judgement, seen, ledger, where=f"{name}:{number}")
        grades[grade] += 1
        best[query_id] = max(grade, best.get(query_id, grade))
        if first_line.setdefault(query_id, number) == number:
            queries.splits.setdefault(query_id, []).append(split)
    for query_id, grade in best.items():
        if grade <= 0:
            ledger.add(
                "query without a positive",
                "warning",
                f"{name}:{first_line[query_id]}: '{query_id}'",
            )
    return SplitStats(
        queries=len(best),
        judgements=sum(grades.values()),
        positives=sum(count for grade, count in grades.items() if grade > 0),
        grades=dict(sorted(grades.items())),
    )


def _check_repeated(
    judgement: tuple[str, str, int],
    seen: dict[tuple[str, str], int],
    ledger: _Ledger,
    *,
    where: str,
) -> None:
    query_id, passage_id, grade = judgement
    earlier = seen.setdefault((query_id, passage_id), grade)
    if earlier != grade:
        ledger.add(
            "contradicting judgements",
            "error",
            f"{where}: '{query_id}' and '{passage_id}' have grades {earlier} and {grade}",
        )


def _check_overlap(ledger: _Ledger, *, file: str, queries: _Texts) -> None:
    """Report queries that occur in several splits, by id or text."""
    splits_of_text: dict[int, dict[str, str]] = {}
    for (query_id, number), text in zip(queries.lines.items(), queries.hashes, strict=True):
        splits = queries.splits.get(query_id, [])
        where = f"{file}:{number}: '{query_id}'"
        if len(splits) > 1:
            ledger.add("query in several splits", "warning", f"{where} is in {', '.join(splits)}")
        known = splits_of_text.setdefault(text, {})
        for split in splits:
            others = sorted(
                f"'{other}' of {name}" for name, other in known.items() if name != split
            )
            if others and query_id not in known.values():
                ledger.add(
                    "same query text in several splits",
                    "warning",
                    f"{where} of {split} has the same text as {others[0]}",
                )
        for split in splits:
            known.setdefault(split, query_id)
