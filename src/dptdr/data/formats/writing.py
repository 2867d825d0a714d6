"""Write a reader's records as a data folder, with counts and checksums."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from dptdr.data.formats.source_data import SourceData, UniqueIds
from dptdr.errors import DataError
from dptdr.io.atomic import sha256_file
from dptdr.io.beir import BeirCounts, as_documents, each_judgement, write_beir
from dptdr.records import Document, Passage, Query

Progress: TypeAlias = Callable[[int, int], None]

_LINES_PER_REPORT = 2000


@dataclass(frozen=True, kw_only=True)
class Check:
    """The published and the actual number of records in a file."""

    what: str
    expected: int
    found: int


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The result of a conversion: ``counts`` of a data folder, or ``groups`` of a training file.

    ``read_as`` describes how the source was interpreted. Judgements of unknown queries and passages
    are counted, as are ``dropped`` records by reason. ``negatives`` counts the training queries in
    each ``negatives-SPLIT.jsonl``.
    """

    out: Path
    read_as: str = ""
    counts: BeirCounts | None = None
    groups: int | None = None
    titled: int = 0
    unknown_passages: int = 0
    unknown_queries: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    negatives: dict[str, int] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def differences(self) -> tuple[Check, ...]:
        """The checks whose counts differ."""
        return tuple(check for check in self.checks if check.expected != check.found)

    def as_json(self) -> dict[str, Any]:
        """Convert everything to plain JSON values."""
        counts = None if self.counts is None else self.counts.as_json()
        return {**asdict(self), "out": str(self.out), "counts": counts}


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Whether mismatched counts are errors, and how to report progress."""

    strict: bool = False
    on_progress: Progress | None = None

    def tell(self, done: int, total: int) -> None:
        """Report progress every few thousand lines."""
        if self.on_progress is not None and done % _LINES_PER_REPORT == 0:
            self.on_progress(done, max(done, total))

    def refuse(self, done: Conversion) -> None:
        """Raise a DataError if ``strict`` is set and a count differs."""
        faults = [
            f"{check.what}: expected {check.expected:,} records as published, got {check.found:,}"
            for check in done.differences
        ]
        faults += unknown(done)
        if self.strict and faults:
            raise DataError("; ".join(faults) + " (only reported without --strict)")


def unknown(done: Conversion) -> list[str]:
    """Describe judgements that refer to unknown passages and queries."""
    counts = {"passages": done.unknown_passages, "queries": done.unknown_queries}
    return [
        f"{count:,} judgements refer to unknown {what}" for what, count in counts.items() if count
    ]


@dataclass
class _Watch:
    """Counts written records, and collects their ids unless the reader checks them."""

    rules: Rules
    total: int
    ids: UniqueIds | None
    query_ids: UniqueIds | None
    seen: int = 0
    titled: int = 0

    def passages(self, passages: Iterable[Passage | Document]) -> Iterator[Document]:
        for document in as_documents(passages):
            passage = document.passage
            self.seen += 1
            self.titled += bool(passage.title)
            if self.ids is not None:
                self.ids.add(passage.id)
            self.rules.tell(self.seen, self.total)
            yield document

    def queries(self, queries: Iterable[Query]) -> Iterator[Query]:
        for query in queries:
            if self.query_ids is not None:
                self.query_ids.add(query.id)
            yield query


def write_source_data(
    source_data: SourceData, *, format: str, out: Path, rules: Rules
) -> Conversion:
    """Write a reader's records as a data folder, atomically.

    Raises:
        DataError: If the source is malformed, or a check fails and the rules are strict.
    """
    published = [source_data.expected.get(name, 0) for name in ("collection.tsv", "psgs_w100.tsv")]
    ids = (None, None) if source_data.complete else (UniqueIds(), UniqueIds())
    watch = _Watch(rules, max(published), *ids)
    result: list[Conversion] = []

    def meta(counts: BeirCounts) -> dict[str, Any]:
        if not counts.passages:
            raise DataError(
                "the data contains no passages", path=next(iter(source_data.files), None)
            )
        unknown_passages, unknown_queries, relevant = _judged(source_data, watch)
        notes = [
            f"split '{split}' has no judgements above 0"
            for split, count in relevant.items()
            if not count
        ]
        done = Conversion(
            out=out,
            read_as=f"{format}: {source_data.read_as}" if source_data.read_as else format,
            counts=counts,
            titled=watch.titled,
            unknown_passages=unknown_passages,
            unknown_queries=unknown_queries,
            dropped={reason: count for reason, count in source_data.dropped.items() if count},
            negatives=dict(source_data.negatives),
            checks=checks(source_data),
            notes=(*source_data.notes, *notes),
        )
        rules.refuse(done)
        result.append(done)
        return {
            "format": format,
            "files": [_described(path) for path in source_data.files],
            "titles": {"with": watch.titled, "without": counts.passages - watch.titled},
            "judgements_of_unknown_passages": done.unknown_passages,
            "judgements_of_unknown_queries": done.unknown_queries,
            "dropped": done.dropped,
            "checks": [vars(check) for check in done.checks],
            "notes": done.notes,
            **source_data.about,
        }

    write_beir(
        out,
        passages=watch.passages(source_data.passages),
        queries=watch.queries(source_data.queries),
        qrels=source_data.qrels,
        meta=meta,
        also=source_data.also,
    )
    return result[0]


def checks(source_data: SourceData) -> tuple[Check, ...]:
    """Compare the counts with the published ones."""
    return tuple(
        Check(what=name, expected=source_data.expected[name], found=found)
        for name, found in sorted(source_data.counted.items())
        if name in source_data.expected
    )


def _judged(source_data: SourceData, watch: _Watch) -> tuple[int, int, dict[str, int]]:
    """Count judgements of unknown passages or queries, and positive judgements in each split."""
    unknown_passages = unknown_queries = 0
    relevant = {}
    for split, judged in source_data.qrels.items():
        relevant[split] = 0
        for query_id, passage_id, grade in each_judgement(judged):
            relevant[split] += grade > 0
            unknown_passages += watch.ids is not None and passage_id not in watch.ids
            unknown_queries += watch.query_ids is not None and query_id not in watch.query_ids
    return unknown_passages, unknown_queries, relevant


def _described(path: Path) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
