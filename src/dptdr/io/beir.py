"""BEIR folders: the one form of data that every stage reads.

``corpus.jsonl`` (``_id``, ``title``, ``text``), ``queries.jsonl`` (``_id``, ``text``) and
``qrels/SPLIT.tsv`` (header, then query-id, corpus-id, score).
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from dptdr.errors import DataError
from dptdr.io.atomic import atomic_folder, recover_folder, write_json
from dptdr.io.lines import (
    decode_line,
    id_fault,
    id_field,
    integer,
    parse_object,
    raw_lines,
    text_field,
)
from dptdr.records import Judgement, Passage, Qrels, Query

CORPUS = "corpus.jsonl"
QUERIES = "queries.jsonl"
QRELS = "qrels"
QRELS_HEADER = ("query-id", "corpus-id", "score")
_SPLIT_ORDER = ("train", "dev", "test")


class BeirFolder:
    """A BEIR folder on disk, read as a stream.

    Args:
        path: The folder; it must hold ``corpus.jsonl``.

    Raises:
        DataError: If there is no such folder or it holds no corpus.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        recover_folder(self.path)
        layout = f"expected a BEIR folder with {CORPUS}, {QUERIES} and {QRELS}/SPLIT.tsv"
        if not self.path.is_dir():
            what = "this is a file" if self.path.exists() else "no such folder"
            raise DataError(f"{what}; {layout}", path=self.path)
        if not (self.path / CORPUS).is_file():
            raise DataError(
                f"no {CORPUS} in this folder; {layout} "
                "(`dptdr data convert` makes one from other formats)",
                path=self.path,
            )

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    def passages(self) -> Iterator[Passage]:
        """Return the passages in file order, read as they are asked for.

        Returns:
            An iterator that raises DataError, naming file, line and field, at a broken line.
        """
        path = self.path / CORPUS
        return (parse_passage(line, path=path, number=number) for number, line in raw_lines(path))

    def queries(self) -> Iterator[Query]:
        """Return the queries of all splits in file order, read as they are asked for.

        Returns:
            An iterator that raises DataError, naming file, line and field, at a broken line.

        Raises:
            DataError: If the folder has no queries.
        """
        path = self.path / QUERIES
        if not path.is_file():
            raise DataError("no such file", path=path)
        return (parse_query(line, path=path, number=number) for number, line in raw_lines(path))

    def splits(self) -> list[str]:
        """Return the names of the splits: train, dev, test first, others by name.

        Returns:
            One name for each ``qrels/NAME.tsv``.
        """
        names = {file.stem for file in (self.path / QRELS).glob("*.tsv")}
        known = [name for name in _SPLIT_ORDER if name in names]
        return known + sorted(names.difference(known))

    def has_split(self, split: str) -> bool:
        """Return whether there are judgements of this split.

        Args:
            split: Name such as ``test``.

        Returns:
            True if ``qrels/SPLIT.tsv`` exists.
        """
        return self.qrels_path(split).is_file()

    def qrels_path(self, split: str) -> Path:
        """Return where the judgements of a split stand.

        Args:
            split: Name such as ``test``.

        Returns:
            The path, whether or not the file exists.
        """
        return self.path / QRELS / f"{split}.tsv"

    def qrels(self, split: str) -> Qrels:
        """Return the judgements of a split.

        Args:
            split: Name such as ``test``.

        Returns:
            Query id to passage id to grade, in file order.

        Raises:
            DataError: If there is no such split, a line is broken, or a pair is judged twice
                with different grades.
        """
        path = self.qrels_path(split)
        if not path.is_file():
            have = ", ".join(self.splits()) or "none"
            raise DataError(f"no split '{split}'; this folder has {have}", path=path)
        qrels: Qrels = {}
        for number, judgement in judgements(path):
            grades = qrels.setdefault(judgement.query_id, {})
            earlier = grades.setdefault(judgement.passage_id, judgement.grade)
            if earlier != judgement.grade:
                raise DataError(
                    f"query '{judgement.query_id}' and passage '{judgement.passage_id}' are judged "
                    f"twice, {earlier} and {judgement.grade}; keep one",
                    path=path,
                    line=number,
                )
        return qrels

    def fingerprint(self) -> str:
        """Return a SHA-256 over names and bytes of the corpus, the queries and all judgements.

        Returns:
            64 hexadecimal digits.
        """
        digest = hashlib.sha256()
        files = [self.path / CORPUS, self.path / QUERIES]
        files += [self.qrels_path(split) for split in sorted(self.splits())]
        for file in files:
            if file.is_file():
                with file.open("rb") as handle:
                    inner = hashlib.file_digest(handle, "sha256").hexdigest()
                digest.update(f"{file.relative_to(self.path).as_posix()} {inner}\n".encode())
        return digest.hexdigest()


def parse_passage(line: bytes, *, path: Path, number: int) -> Passage:
    """Return the passage that stands in one line of ``corpus.jsonl``.

    Args:
        line: The bytes of the line.
        path: The file, for messages.
        number: The line's number, for messages.

    Returns:
        The passage; a missing or null title is an empty one.

    Raises:
        DataError: If the line is broken; names file, line and field.
    """
    record = parse_object(line, path=path, number=number)
    titled = record.get("title") is not None
    return Passage(
        id=id_field(record, "_id", path=path, number=number),
        text=text_field(record, "text", path=path, number=number),
        title=text_field(record, "title", path=path, number=number) if titled else "",
    )


def parse_query(line: bytes, *, path: Path, number: int) -> Query:
    """Return the query that stands in one line of ``queries.jsonl``.

    Args:
        line: The bytes of the line.
        path: The file, for messages.
        number: The line's number, for messages.

    Returns:
        The query.

    Raises:
        DataError: If the line is broken; names file, line and field.
    """
    record = parse_object(line, path=path, number=number)
    return Query(
        id=id_field(record, "_id", path=path, number=number),
        text=text_field(record, "text", path=path, number=number),
    )


def is_qrels_header(line: bytes) -> bool:
    """Return whether the first line of a qrels file is BEIR's header.

    Args:
        line: The bytes of the line.

    Returns:
        True if the first or last column is named as BEIR names it.
    """
    fields = line.decode("utf-8", "replace").lower().split("\t")
    return fields[-1].strip() == "score" or fields[0].strip().replace("_", "-") == "query-id"


def parse_judgement(line: bytes, *, path: Path, number: int) -> Judgement:
    """Return the judgement that stands in one line of a BEIR qrels file.

    Args:
        line: The bytes of the line.
        path: The file, for messages.
        number: The line's number, for messages.

    Returns:
        The judgement.

    Raises:
        DataError: If the line is broken; names file, line and field.
    """
    fields = decode_line(line, path=path, number=number).split("\t")
    if len(fields) != len(QRELS_HEADER):
        raise DataError(
            "expected 3 fields separated by tabs (query-id, corpus-id, score), "
            f"got {len(fields)}: {line[:80].decode('utf-8', 'replace')!r}",
            path=path,
            line=number,
        )
    for name, value in zip(QRELS_HEADER[:2], fields, strict=False):
        fault = id_fault(value)
        if fault:
            raise DataError(fault, path=path, line=number, field=name)
    grade = integer(fields[2], path=path, number=number, field="score")
    return Judgement(query_id=fields[0], passage_id=fields[1], grade=grade)


def judgements(path: Path) -> Iterator[tuple[int, Judgement]]:
    """Yield line number and judgement of a BEIR qrels file.

    The header that BEIR prescribes may be absent: a first line whose score is an integer counts.

    Args:
        path: The file.

    Yields:
        Number of the line, and what it says.

    Raises:
        DataError: If the file is missing or a line is broken.
    """
    for number, line in raw_lines(path):
        if number == 1 and is_qrels_header(line):
            continue
        yield number, parse_judgement(line, path=path, number=number)


class BeirCounts(NamedTuple):
    """What a written folder holds."""

    passages: int
    queries: int
    judgements: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """Return the counts as they stand in ``meta.json``."""
        return {
            "passages": self.passages,
            "queries": self.queries,
            "judgements": dict(self.judgements),
        }


def write_beir(
    path: Path | str,
    *,
    passages: Iterable[Passage],
    queries: Iterable[Query],
    qrels: Mapping[str, Qrels | Iterable[Judgement]],
    meta: Mapping[str, Any] | Callable[[BeirCounts], Mapping[str, Any]],
    also: Callable[[Path], None] | None = None,
) -> BeirCounts:
    """Write a BEIR folder; it appears whole or not at all.

    Passages and queries are streamed: memory does not grow with them.

    Args:
        path: Where the folder shall stand; a BEIR folder there is replaced.
        passages: The corpus.
        queries: The queries of all splits.
        qrels: Split name to judgements; asked for when passages and queries are written.
        meta: What ``meta.json`` shall say besides the counts, or a function that is given the
            counts and returns it.
        also: Writes further files into the folder that it is given.

    Returns:
        What was written.

    Raises:
        DataError: If something else stands there, an id is empty or holds a tab, or a text cannot
            be written as UTF-8.
    """
    path = Path(path)
    _refuse_foreign(path)
    with atomic_folder(path) as folder:
        passage_count = _write_jsonl(
            folder / CORPUS,
            ({"_id": p.id, "title": p.title, "text": p.text} for p in passages),
        )
        query_count = _write_jsonl(
            folder / QUERIES, ({"_id": q.id, "text": q.text} for q in queries)
        )
        (folder / QRELS).mkdir()
        judged = {
            split: _write_qrels(folder / QRELS / f"{split}.tsv", grades)
            for split, grades in qrels.items()
        }
        counts = BeirCounts(passages=passage_count, queries=query_count, judgements=judged)
        if also is not None:
            also(folder)
        said = meta(counts) if callable(meta) else meta
        write_json(folder / "meta.json", {**said, "counts": counts.as_json()})
    return counts


def _refuse_foreign(path: Path) -> None:
    """Replacing a folder deletes it; only what this module wrote may be deleted."""
    if path.exists() and not path.is_dir():
        raise DataError("a file stands where the data folder shall be written", path=path)
    if path.is_dir() and any(path.iterdir()) and not (path / CORPUS).is_file():
        raise DataError(
            f"this folder holds other files and no {CORPUS}; name a new or empty folder", path=path
        )


def _write_jsonl(path: Path, records: Iterable[dict[str, str]]) -> int:
    count = 0
    with path.open("wb") as handle:
        for record in records:
            count += 1
            fault = id_fault(record["_id"])
            if fault:
                raise DataError(f"cannot write: {fault}", path=path.name, line=count, field="_id")
            try:
                handle.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
            except orjson.JSONEncodeError as error:
                raise DataError(
                    f"cannot write '{record['_id']}': {error}", path=path.name, line=count
                ) from None
    return count


def each_judgement(qrels: Qrels | Iterable[Judgement]) -> Iterator[Judgement]:
    """Yield the judgements of either form."""
    if not isinstance(qrels, dict):
        yield from qrels
        return
    for query_id, grades in qrels.items():
        for passage_id, grade in grades.items():
            yield Judgement(query_id, passage_id, grade)


def _write_qrels(path: Path, qrels: Qrels | Iterable[Judgement]) -> int:
    count = 0
    with path.open("wb") as handle:
        handle.write("\t".join(QRELS_HEADER).encode() + b"\n")
        for query_id, passage_id, grade in each_judgement(qrels):
            fault = id_fault(query_id) or id_fault(passage_id)
            if fault:
                raise DataError(f"cannot write: {fault}", path=f"{QRELS}/{path.name}")
            handle.write(f"{query_id}\t{passage_id}\t{grade}\n".encode())
            count += 1
    return count
