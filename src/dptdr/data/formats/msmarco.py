"""Read MS MARCO's passage ranking files: collection, queries, qrels, top1000 and triples."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from dptdr.data.formats.source_data import (
    PUBLISHED,
    SourceData,
    UniqueIds,
    UniqueTexts,
    find_file,
    need_folder,
    plain_name,
)
from dptdr.data.formats.tables import check_width, checked_id, tab_rows
from dptdr.data.training_records import DROPPED, without_positives
from dptdr.errors import DataError
from dptdr.io.lines import decode_line, raw_lines
from dptdr.io.trec import gather_qrels, judgements
from dptdr.records import Judgement, Passage, Qrels, Query

_QUERIES = re.compile(r"queries\.(?P<split>[\w.-]+)\.tsv|msmarco-test(?P<year>\d{4})-queries\.tsv")
_QRELS = re.compile(r"qrels\.(?P<split>[\w.-]+)\.tsv|(?P<year>\d{4})qrels-pass\.txt")
_LAYOUT = "collection.tsv, queries.SPLIT.tsv and qrels.SPLIT.tsv (each may be .gz)"


def read_msmarco(source: Path) -> SourceData:
    """Read a folder of MS MARCO's official files.

    Splits are named after the files: ``qrels.dev.small.tsv`` gives ``dev.small``, and TREC's
    ``2019qrels-pass.txt`` gives ``trec-dl-2019``.

    Raises:
        DataError: If the folder or its collection is missing, or a judgement is malformed.
    """
    need_folder(source, holds=_LAYOUT)
    collection = find_file(source, "collection.tsv")
    if collection is None:
        raise DataError(f"expected {_LAYOUT}, got no collection.tsv", path=source)
    queries = _matching(source, _QUERIES)
    qrels = _matching(source, _QRELS)
    counted: Counter[str] = Counter()
    others = [*source.glob("top1000*"), *source.glob("*triples*")]
    return SourceData(
        passages=_passages(collection, counted),
        queries=_queries([path for _, path in queries], counted),
        qrels={split: _qrels(path, counted) for split, path in qrels},
        files=[collection, *(path for _, path in queries), *(path for _, path in qrels)],
        counted=counted,
        expected=PUBLISHED,
        notes=[
            f"{path.name} is not part of a data folder; convert it with --format "
            + ("msmarco-top1000" if path.name.startswith("top1000") else "msmarco-triples")
            for path in sorted(others)
        ],
    )


def _matching(source: Path, pattern: re.Pattern[str]) -> list[tuple[str, Path]]:
    found: list[tuple[str, Path]] = []
    for path in sorted(source.iterdir()):
        match = pattern.fullmatch(plain_name(path))
        if match:
            found.append((match["split"] or f"trec-dl-{match['year']}", path))
    return found


def _passages(path: Path, counted: Counter[str]) -> Iterator[Passage]:
    """Read ``id, text``, or ``id, title, text`` in the collection with titles."""
    seen = UniqueIds()
    columns: tuple[str, ...] = ()
    for number, line in raw_lines(path):
        fields = decode_line(line, path=path, number=number).split("\t")
        if not columns:
            columns = ("id", "title", "text") if len(fields) == 3 else ("id", "text")
        check_width(fields, columns=columns, path=path, number=number)
        passage_id = checked_id(fields[0], path=path, number=number, field="id")
        if not seen.add(passage_id):
            raise DataError(
                f"duplicate passage id '{passage_id}'; delete one of them", path=path, line=number
            )
        counted[plain_name(path)] += 1
        title = fields[1] if len(columns) == 3 else ""
        yield Passage(id=passage_id, text=fields[-1], title=title)


def _queries(paths: list[Path], counted: Counter[str]) -> Iterator[Query]:
    """Read queries; the small files repeat queries of the large ones."""
    seen: dict[str, int] = {}
    for path in paths:
        in_file = UniqueIds()
        for number, (query_id, text) in tab_rows(path, columns=("id", "text")):
            checked_id(query_id, path=path, number=number, field="id")
            if not in_file.add(query_id):
                raise DataError(
                    f"duplicate query id '{query_id}'; delete one of them", path=path, line=number
                )
            counted[plain_name(path)] += 1
            known = seen.setdefault(query_id, hash(text))
            if known != hash(text):
                raise DataError(
                    f"query '{query_id}' has a different text in an earlier file",
                    path=path,
                    line=number,
                )
            if len(seen) > counted["distinct queries"]:
                counted["distinct queries"] += 1
                yield Query(query_id, text)


def _qrels(path: Path, counted: Counter[str]) -> Qrels:
    def lines() -> Iterator[tuple[int, Judgement]]:
        for line in judgements(path):
            counted[plain_name(path)] += 1
            yield line

    return gather_qrels(lines(), path=path)


def read_top1000(source: Path) -> SourceData:
    """Read queries, passages and candidates from a ``top1000`` file.

    The columns are query id, passage id, query and passage. The candidates are written as the TREC
    run ``candidates.trec`` in file order, which is not necessarily a ranking.

    Raises:
        DataError: If the file does not exist.
    """
    if not source.is_file():
        raise DataError("no such file; expected MS MARCO's top1000 file", path=source)
    columns = ("query id", "passage id", "query", "passage")
    counted: Counter[str] = Counter()

    def passages() -> Iterator[Passage]:
        seen = UniqueTexts()
        for number, (_, passage_id, _, text) in tab_rows(source, columns=columns):
            counted[plain_name(source)] += 1
            checked_id(passage_id, path=source, number=number, field="passage id")
            if seen.add(passage_id, text, path=source, line=number, what="passage"):
                yield Passage(passage_id, text)

    def queries() -> Iterator[Query]:
        seen = UniqueTexts()
        for number, (query_id, _, query, _) in tab_rows(source, columns=columns):
            checked_id(query_id, path=source, number=number, field="query id")
            if seen.add(query_id, query, path=source, line=number, what="query"):
                yield Query(query_id, query)

    def candidates(folder: Path) -> None:
        ranks: Counter[str] = Counter()
        with (folder / "candidates.trec").open("w", encoding="utf-8") as handle:
            for _, (query_id, passage_id, _, _) in tab_rows(source, columns=columns):
                ranks[query_id] += 1
                rank = ranks[query_id]
                handle.write(f"{query_id} Q0 {passage_id} {rank} {-rank} top1000\n")

    return SourceData(
        passages=passages(),
        queries=queries(),
        qrels={},
        files=[source],
        counted=counted,
        expected=PUBLISHED,
        also=candidates,
        notes=["candidates.trec is in file order, which is not a ranking"],
    )


def read_triples(
    source: Path, *, counted: Counter[str], dropped: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Yield training records from a file of (query, positive, negative) ids or texts.

    Consecutive lines with the same query and positive become one record, in the format ``mined``
    (ids) or ``groups`` (texts).

    Args:
        dropped: Receives the number of negatives that are the positive.

    Raises:
        DataError: If the file is missing or a line is malformed.
    """
    columns = ("query", "positive", "negative")
    current: tuple[str, str] | None = None
    negatives: list[str] = []
    of_ids = True
    for _, (query, positive, negative) in tab_rows(source, columns=columns):
        if current is None:
            of_ids = all(
                field.isascii() and field.isdigit() for field in (query, positive, negative)
            )
        counted[plain_name(source)] += 1
        if current != (query, positive):
            if current is not None:
                yield drop_positives(_triple(current, negatives, of_ids=of_ids), dropped)
            current, negatives = (query, positive), []
        negatives.append(negative)
    if current is not None:
        yield drop_positives(_triple(current, negatives, of_ids=of_ids), dropped)


def _triple(pair: tuple[str, str], negatives: list[str], *, of_ids: bool) -> dict[str, Any]:
    query, positive = pair
    if not of_ids:
        return {"query": query, "positives": [positive], "negatives": negatives}
    return {
        "query_id": query,
        "positives": [positive],
        "negatives": [{"id": negative, "sources": {"triples": {}}} for negative in negatives],
    }


def drop_positives(record: dict[str, Any], dropped: Counter[str]) -> dict[str, Any]:
    """Drop negatives that are also a positive of the record, and count them."""

    def names(item: Any) -> tuple[str]:
        return (item["id"] if isinstance(item, dict) else item,)

    kept = without_positives(record["negatives"], record["positives"], names=names)
    dropped[DROPPED] += len(record["negatives"]) - len(kept)
    return {**record, "negatives": kept}


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Write records as JSON lines and return their number."""
    count = 0
    with path.open("wb") as handle:
        for record in records:
            handle.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
            count += 1
    return count
