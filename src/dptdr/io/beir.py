"""Read and write BEIR folders, the input of every stage.

``corpus.jsonl`` (``_id``, ``title``, ``text``), ``queries.jsonl`` (``_id``, ``text``) and
``qrels/SPLIT.tsv`` (header, then query-id, corpus-id, score; or TREC's four columns). Each may be
compressed (``corpus.jsonl.gz``). Hidden files are ignored. Ids must be unique.
"""

import contextlib
import glob
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import orjson

from dptdr.errors import ConfigError, DataError
from dptdr.io.atomic import atomic_folder, read_json, recover_folder, write_json
from dptdr.io.ids import IdSet
from dptdr.io.lines import describe, id_fault, id_field, parse_object, raw_lines, text_field
from dptdr.io.outputs import refuse_extra
from dptdr.io.trec import QRELS_HEADER, read_qrels
from dptdr.records import Document, Judgement, Passage, Qrels, Query

CORPUS = "corpus.jsonl"
QUERIES = "queries.jsonl"
QRELS = "qrels"
_METADATA = "metadata"
_LARGEST_INTEGER = 2**63
_LONG_INTEGER = re.compile(rb'(?<![\d.eE"])-?\d{19,}(?![\d.eE"])')
Record = TypeVar("Record")
_SPLIT_ORDER = ("train", "dev", "test")


class BeirFolder:
    """A BEIR folder on disk, read as a stream.

    Raises:
        DataError: If the folder does not exist or contains no ``corpus.jsonl``.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        recover_folder(self.path)
        layout = f"expected a BEIR folder with {CORPUS}, {QUERIES} and {QRELS}/SPLIT.tsv"
        if not self.path.is_dir():
            what = "this is a file" if self.path.exists() else "no such folder"
            raise DataError(f"{what}; {layout}", path=self.path)
        self.corpus_path = _member(self.path / CORPUS)
        self.queries_path = _member(self.path / QUERIES)
        if not self.corpus_path.is_file():
            raise DataError(
                f"no {CORPUS} in this folder; {layout} "
                "(`dptdr data convert` makes one from other formats)",
                path=self.path,
            )

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.path.resolve().name

    def passages(self) -> Iterator[Passage]:
        """Yield the passages in file order."""
        return self.read_corpus(parse_passage, passage_id)

    def documents(self) -> Iterator[Document]:
        """Yield the passages with their ``metadata`` object, in file order."""
        return self.read_corpus(parse_document, lambda document: document.passage.id)

    def read_corpus(
        self, parse: Callable[..., Record], id_of: Callable[[Record], str]
    ) -> Iterator[Record]:
        """Apply a function to each line of the corpus; see :meth:`passages`.

        Args:
            parse: Takes the line, and ``path`` and ``number`` as keyword arguments.
        """
        return _unique(self.corpus_path, parse, id_of, noun="passage")

    def queries(self) -> Iterator[Query]:
        """Yield the queries of all splits in file order.

        Raises:
            DataError: If the folder has no queries.
        """
        if not self.queries_path.is_file():
            raise DataError("no such file", path=self.queries_path)
        return _unique(self.queries_path, parse_query, query_id, noun="query")

    def splits(self) -> list[str]:
        """List the splits in ``qrels/``: train, dev and test first, then by name."""
        files = (self.path / QRELS).glob("*.tsv*")
        names = {
            file.name.removesuffix(".gz").removesuffix(".tsv")
            for file in files
            if file.name.endswith((".tsv", ".tsv.gz")) and not file.name.startswith(".")
        }
        known = [name for name in _SPLIT_ORDER if name in names]
        return known + sorted(names.difference(known))

    def has_split(self, split: str) -> bool:
        """Check whether ``qrels/SPLIT.tsv`` exists."""
        return self.qrels_path(split).is_file()

    def qrels_path(self, split: str) -> Path:
        """Return the path of a split's qrels file."""
        if "/" in split or len(split) > 100:
            check_split(split)
        return _member(self.path / QRELS / f"{split}.tsv")

    def qrels(self, split: str) -> Qrels:
        """Read the judgements of a split.

        Raises:
            DataError: If the split does not exist, a line is malformed, or a pair has conflicting
                grades.
        """
        path = self.qrels_path(split)
        if not path.is_file():
            have = ", ".join(self.splits()) or "none"
            raise DataError(f"no split '{split}'; this folder has {have}", path=path)
        return read_qrels(path)

    def fingerprint(self) -> str:
        """Return the hexadecimal SHA-256 over names and bytes of corpus, queries and qrels."""
        digest = hashlib.sha256()
        files = [self.corpus_path, self.queries_path]
        files += [self.qrels_path(split) for split in sorted(self.splits())]
        for file in files:
            if file.is_file():
                with file.open("rb") as handle:
                    inner = hashlib.file_digest(handle, "sha256").hexdigest()
                digest.update(f"{file.relative_to(self.path).as_posix()} {inner}\n".encode())
        return digest.hexdigest()


def _member(path: Path) -> Path:
    """Return the plain file, or the compressed one if there is no plain one.

    Raises:
        DataError: If both exist.
    """
    packed = path.with_name(path.name + ".gz")
    if packed.is_file() and path.is_file():
        raise DataError(f"expected one file, got {packed.name} beside it; remove one", path=path)
    return packed if packed.is_file() and not path.is_file() else path


def passage_id(passage: Passage) -> str:
    """Return a passage's id."""
    return passage.id


def query_id(query: Query) -> str:
    """Return a query's id."""
    return query.id


def _unique(
    path: Path,
    parse: Callable[..., Record],
    id_of: Callable[[Record], str],
    *,
    noun: str,
) -> Iterator[Record]:
    seen = IdSet()
    for number, line in raw_lines(path):
        record = parse(line, path=path, number=number)
        if not seen.add(id_of(record)):
            _refuse_second(id_of(record), path=path, number=number, noun=noun)
        yield record


def _refuse_second(record_id: str, *, path: Path, number: int, noun: str) -> None:
    """Return the first line with the id, or ``None`` if only the hashes are equal."""
    for earlier, line in raw_lines(path):
        if earlier == number:
            return
        if str(parse_object(line, path=path, number=earlier).get("_id")) == record_id:
            raise duplicate_id(record_id, path=path, lines=(earlier, number), noun=noun)


def duplicate_id(record_id: str, *, path: Path, lines: tuple[int, int], noun: str) -> DataError:
    """Create the error for a duplicate id."""
    first, second = lines
    return DataError(
        f"duplicate {noun} id '{record_id}', first in line {first}; delete one of them",
        path=path,
        line=second,
        field="_id",
    )


def parse_passage(line: bytes, *, path: Path, number: int) -> Passage:
    """Parse a line of ``corpus.jsonl``; a missing or null title becomes empty.

    Raises:
        DataError: If the line is malformed.
    """
    record = parse_object(line, path=path, number=number)
    titled = record.get("title") is not None
    return Passage(
        id=id_field(record, "_id", path=path, number=number),
        text=text_field(record, "text", path=path, number=number),
        title=text_field(record, "title", path=path, number=number) if titled else "",
    )


def parse_document(line: bytes, *, path: Path, number: int) -> Document:
    """Return the passage of one line of a corpus with its ``metadata`` object.

    Raises:
        DataError: If the line is broken.
    """
    passage = parse_passage(line, path=path, number=number)
    metadata: Any = None
    # Most corpora have no metadata: look for the word before parsing the line again.
    if b'"metadata"' in line:
        metadata = parse_object(line, path=path, number=number).get(_METADATA)
    if metadata is not None and not isinstance(metadata, dict):
        raise DataError(
            f'expected an object such as {{"lang": "en"}}, got {describe(metadata)}',
            path=path,
            line=number,
            field=_METADATA,
        )
    if metadata:
        _check_integers(metadata, line, path=path, number=number)
    return Document(passage, metadata or {})


def _check_integers(metadata: Any, line: bytes, *, path: Path, number: int) -> None:
    """Reject integers beyond 64 bits, which orjson rounds to floats."""
    waiting = [metadata]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            waiting.extend(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, float) and abs(value) >= _LARGEST_INTEGER and _has(value, line):
            raise DataError(
                f"expected integers of at most 64 bits, got one near {value:.6g}; write it as text",
                path=path,
                line=number,
                field=_METADATA,
            )


def _has(value: float, line: bytes) -> bool:
    """Check whether a line has an integer of this value, not just a float such as 1e22."""
    return any(float(digits) == value for digits in _LONG_INTEGER.findall(line))


def as_documents(passages: Iterable[Passage | Document]) -> Iterator[Document]:
    """Yield every passage as a document, without metadata where it has none."""
    for item in passages:
        yield item if isinstance(item, Document) else Document(item)


def document_record(document: Document) -> dict[str, Any]:
    """Return the fields of a document's line in ``corpus.jsonl``."""
    passage, metadata = document
    record: dict[str, Any] = {"_id": passage.id, "title": passage.title, "text": passage.text}
    if metadata:
        record[_METADATA] = dict(metadata)
    return record


def parse_query(line: bytes, *, path: Path, number: int) -> Query:
    """Parse a line of ``queries.jsonl``.

    Raises:
        DataError: If the line is malformed.
    """
    record = parse_object(line, path=path, number=number)
    return Query(
        id=id_field(record, "_id", path=path, number=number),
        text=text_field(record, "text", path=path, number=number),
    )


class BeirCounts(NamedTuple):
    """Record counts of a written folder."""

    passages: int
    queries: int
    judgements: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """Format the counts for ``meta.json``."""
        return {
            "passages": self.passages,
            "queries": self.queries,
            "judgements": dict(self.judgements),
        }


def write_beir(
    path: Path | str,
    *,
    passages: Iterable[Passage | Document],
    queries: Iterable[Query],
    qrels: Mapping[str, Qrels | Iterable[Judgement]],
    meta: Mapping[str, Any] | Callable[[BeirCounts], Mapping[str, Any]],
    also: Callable[[Path], None] | None = None,
) -> BeirCounts:
    """Write a BEIR folder atomically, streaming passages and queries.

    Args:
        qrels: Split name to judgements; read after passages and queries are written.
        meta: Additional contents of ``meta.json``, or a function from the counts to them.

    Raises:
        DataError: If ``path`` contains unrelated files, an id is empty or contains a tab, a text
            cannot be encoded as UTF-8, or a split has no judgements.
    """
    path = Path(path)
    _refuse_foreign(path)
    for split in qrels:
        check_split(split)
    with atomic_folder(path) as folder:
        passage_count = _write_jsonl(folder / CORPUS, map(document_record, as_documents(passages)))
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
        files = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
        facts = {
            **said,
            "counts": counts.as_json(),
            "written": sorted(file.as_posix() for file in files),
        }
        write_json(folder / "meta.json", facts)
    return counts


_WRITTEN = (
    *(CORPUS, f"{CORPUS}.gz", QUERIES, f"{QUERIES}.gz", f"{QRELS}/*.tsv", f"{QRELS}/*.tsv.gz"),
    *("meta.json", "negatives-*.jsonl", "answers/*", "candidates.trec", ".DS_Store", "._*"),
)
"""What data folders of earlier versions, which do not list their files, consist of."""


def check_split(name: object) -> str:
    """Return a split's name, which is part of a file name.

    Raises:
        ConfigError: If it cannot be.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]{0,99}", name):
        raise ConfigError(f"expected the name of a split such as train, got {name!r:.100}")
    return name


def _refuse_foreign(path: Path) -> None:
    """Reject an existing folder that was not written here, or has other files."""
    if path.is_symlink():
        raise DataError(
            "expected a folder that is not a link, which would be replaced; use its target, "
            f"{path.resolve()}",
            path=path,
        )
    if path.exists() and not path.is_dir():
        raise DataError("expected an output folder, got a file; choose a different name", path=path)
    if path.is_dir() and any(path.iterdir()) and not _member(path / CORPUS).is_file():
        raise DataError(
            f"this folder contains other files and no {CORPUS}; choose a new or empty folder",
            path=path,
        )
    if path.is_dir() and any(path.iterdir()) and not (path / "meta.json").is_file():
        raise DataError(
            "this data folder was not written by dptdr (it has no meta.json), and would be lost; "
            "choose a new or empty folder",
            path=path,
        )
    known: Iterable[str] = _WRITTEN
    with contextlib.suppress(DataError):
        found = read_json(path / "meta.json")
        if isinstance(found, dict) and isinstance(found.get("written"), list):
            known = (
                *(glob.escape(str(name)) for name in found["written"]),
                "meta.json",
                ".DS_Store",
            )
    refuse_extra(path, known=tuple(known))


def _write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> int:
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
    """Iterate over judgements given as a dict or an iterable."""
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
    if not count:
        raise DataError(
            "cannot write: the split contains no judgements", path=f"{QRELS}/{path.name}"
        )
    return count
