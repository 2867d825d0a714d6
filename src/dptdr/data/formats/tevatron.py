"""Read Tevatron's JSON lines: training groups with embedded passages, and corpora."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dptdr.data.formats.msmarco import drop_positives, write_lines
from dptdr.data.formats.source_data import (
    SourceData,
    UniqueIds,
    UniqueTexts,
    find_file,
    plain_name,
)
from dptdr.data.training_files import read_records
from dptdr.errors import DataError
from dptdr.io.lines import describe
from dptdr.records import Passage, Qrels, Query

_SIDES = ("positive_passages", "negative_passages")
_IDS = ("positive_document_ids", "negative_document_ids")
_PRESENT = {"query": "query_text", "text": "document_text"}
"""Field names in Tevatron's current format."""


def read_tevatron(source: Path) -> SourceData:
    """Read a Tevatron file, or a folder of Tevatron files.

    Files are named after splits. In a folder, ``corpus.jsonl`` (``docid``, ``title``, ``text``, or
    ``document_text`` in the current format) contains the passages, and those embedded in groups
    must have the same text; without it, passages are collected from the groups. Negatives are
    written to ``negatives-SPLIT.jsonl``.

    Raises:
        DataError: If the file does not exist, a record is malformed, or a passage has two texts.
    """
    corpus = find_file(source, "corpus.jsonl") if source.is_dir() else None
    paths = sorted(source.glob("*.jsonl")) + sorted(source.glob("*.jsonl.gz"))
    paths = [path for path in paths if path != corpus and not path.name.startswith(".")]
    paths = paths if source.is_dir() else [source]
    if not paths or not all(path.is_file() for path in paths):
        raise DataError("expected a Tevatron .jsonl file, or a folder of them", path=source)
    splits = {plain_name(path).removesuffix(".jsonl"): path for path in paths}
    counted: Counter[str] = Counter()
    dropped: Counter[str] = Counter()

    def also(folder: Path) -> None:
        for split, path in splits.items():
            records = (drop_positives(record, dropped) for record in _negatives(path))
            write_lines(folder / f"negatives-{split}.jsonl", records)

    return SourceData(
        passages=_corpus(corpus, paths, counted) if corpus else _inner_passages(paths),
        queries=_queries(paths, counted),
        qrels={split: grades for split, path in splits.items() if (grades := _qrels(path))},
        files=[*([corpus] if corpus else []), *paths],
        counted=counted,
        dropped=dropped,
        also=also,
    )


def _text(record: Mapping[str, Any], name: str, *, path: Path, line: int) -> str:
    if _PRESENT.get(name) in record:
        if name in record and record[name] != record[_PRESENT[name]]:
            raise DataError(
                f"expected either '{name}' or '{_PRESENT[name]}', got both", path=path, line=line
            )
        name = _PRESENT[name]
    value = record.get(name)
    # Some files use numeric document ids.
    if type(value) is int and name in {"docid", "query_id"}:
        return str(value)
    if not isinstance(value, str):
        raise DataError(
            f"expected a string, got {describe(value)}", path=path, line=line, field=name
        )
    return value


def _passage(record: object, *, path: Path, line: int) -> Passage:
    if not isinstance(record, dict):
        raise DataError(f"expected a passage object, got {describe(record)}", path=path, line=line)
    return Passage(
        id=_text(record, "docid", path=path, line=line),
        text=_text(record, "text", path=path, line=line),
        title=_text(record, "title", path=path, line=line) if record.get("title") else "",
    )


def _side(record: Mapping[str, Any], name: str, *, path: Path, line: int) -> list[Passage]:
    value = record.get(name) or []
    if not isinstance(value, list):
        raise DataError(f"expected a list, got {describe(value)}", path=path, line=line, field=name)
    return [_passage(item, path=path, line=line) for item in value]


def _ids(record: Mapping[str, Any], side: int, *, path: Path, line: int) -> list[str]:
    """Return the ids of one side, whose passages may be embedded or referenced by id."""
    if _SIDES[side] in record:
        return [p.id for p in _side(record, _SIDES[side], path=path, line=line)]
    value = record.get(_IDS[side]) or []
    if not isinstance(value, list) or not all(type(item) in (str, int) for item in value):
        raise DataError(
            f"expected a list of ids, got {describe(value)}", path=path, line=line, field=_IDS[side]
        )
    return [str(item) for item in value]


def _corpus(path: Path, groups: list[Path], counted: Counter[str]) -> Iterator[Passage]:
    seen, embedded = UniqueIds(), UniqueTexts()
    for place, line, passage in _embedded(groups):
        embedded.add(passage.id, _content(passage), path=place, line=line, what="passage")
    for line, record in read_records(path):
        passage = _passage(record, path=path, line=line)
        if not seen.add(passage.id):
            raise DataError(
                f"duplicate passage id '{passage.id}'; delete one of them", path=path, line=line
            )
        # Groups may omit titles.
        if embedded.contradicts(passage.id, _content(passage), _content(passage, title="")):
            other, number = next(
                (place, number) for place, number, p in _embedded(groups) if p.id == passage.id
            )
            raise DataError(
                f"passage '{passage.id}' has another text in {other}, line {number}; correct one "
                "of them",
                path=path,
                line=line,
            )
        counted[plain_name(path)] += 1
        yield passage


def _inner_passages(paths: list[Path]) -> Iterator[Passage]:
    seen = UniqueTexts()
    for path in paths:
        for line, record in read_records(path):
            if _IDS[0] in record:
                raise DataError(
                    "refers to passages by id; expected corpus.jsonl in the same folder, got none",
                    path=path,
                    line=line,
                    field=_IDS[0],
                )
            for passage in _passages_in(record, path=path, line=line):
                if seen.add(passage.id, _content(passage), path=path, line=line, what="passage"):
                    yield passage


def _embedded(paths: list[Path]) -> Iterator[tuple[Path, int, Passage]]:
    """Yield the passages embedded in groups, with file and line."""
    for path in paths:
        for line, record in read_records(path):
            for passage in _passages_in(record, path=path, line=line):
                yield path, line, passage


def _passages_in(record: Mapping[str, Any], *, path: Path, line: int) -> Iterator[Passage]:
    for side in _SIDES:
        yield from _side(record, side, path=path, line=line)


def _content(passage: Passage, *, title: str | None = None) -> str:
    return f"{passage.title if title is None else title}\0{passage.text}"


def _queries(paths: list[Path], counted: Counter[str]) -> Iterator[Query]:
    seen = UniqueIds()
    for path in paths:
        for line, record in read_records(path):
            query_id = _text(record, "query_id", path=path, line=line)
            if not seen.add(query_id):
                raise DataError(
                    f"duplicate query id '{query_id}'; delete one of them", path=path, line=line
                )
            counted[plain_name(path)] += 1
            yield Query(query_id, _text(record, "query", path=path, line=line))


def _qrels(path: Path) -> Qrels:
    qrels: Qrels = {}
    for line, record in read_records(path):
        positives = _ids(record, 0, path=path, line=line)
        if positives:
            query_id = _text(record, "query_id", path=path, line=line)
            qrels[query_id] = dict.fromkeys(positives, 1)
    return qrels


def _negatives(path: Path) -> Iterator[dict[str, Any]]:
    for line, record in read_records(path):
        sides = [_ids(record, side, path=path, line=line) for side in (0, 1)]
        if all(sides):
            yield {
                "query_id": _text(record, "query_id", path=path, line=line),
                "positives": sides[0],
                "negatives": [
                    {"id": passage_id, "sources": {"tevatron": {"rank": rank}}}
                    for rank, passage_id in enumerate(sides[1], start=1)
                ],
            }
