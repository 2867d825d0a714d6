"""Converting: from a source in any format to a data folder, counted and checksummed."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import orjson

from dptdr.data.formats.beirsource import read_beir
from dptdr.data.formats.dpr import read_dpr
from dptdr.data.formats.irdatasets import PREFIX, read_ir_datasets
from dptdr.data.formats.material import PUBLISHED, Material, UniqueIds, plain_name
from dptdr.data.formats.msmarco import read_msmarco, read_top1000, read_triples
from dptdr.data.formats.tevatron import read_tevatron
from dptdr.errors import DataError
from dptdr.io.atomic import atomic_file, sha256_file
from dptdr.io.beir import BeirCounts, write_beir
from dptdr.records import Passage, Qrels

Progress: TypeAlias = Callable[[int, int], None]

READERS: dict[str, Callable[[Path], Material]] = {
    "beir": read_beir,
    "dpr": read_dpr,
    "msmarco": read_msmarco,
    "msmarco-top1000": read_top1000,
    "tevatron": read_tevatron,
}
TRIPLES = "msmarco-triples"
IR_DATASETS = "ir_datasets"
FORMATS = (*READERS, TRIPLES, IR_DATASETS)
"""What ``--format`` takes."""

_LINES_PER_REPORT = 2000


@dataclass(frozen=True, kw_only=True)
class Check:
    """The published number of records of a file, and the number that was found."""

    what: str
    expected: int
    found: int


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was converted: ``counts`` of a data folder, or ``groups`` of a training file."""

    out: Path
    counts: BeirCounts | None = None
    groups: int | None = None
    titled: int = 0
    dangling: int = 0
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def differences(self) -> tuple[Check, ...]:
        """The checks whose numbers differ."""
        return tuple(check for check in self.checks if check.expected != check.found)

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        counts = None if self.counts is None else self.counts.as_json()
        return {**asdict(self), "out": str(self.out), "counts": counts}


@dataclass(frozen=True, kw_only=True)
class _Rules:
    strict: bool
    on_progress: Progress | None


def convert(
    source: str,
    *,
    format: str | None,
    out: Path | str,
    strict: bool = False,
    on_progress: Progress | None = None,
) -> Conversion:
    """Convert a source to a data folder (triples: to a training file), whole or not at all.

    Args:
        source: A file or folder, or ``ir:NAME`` for ir_datasets.
        format: One of :data:`FORMATS`; may be None for ``ir:NAME``.
        out: Where the folder or file shall stand.
        strict: Whether a number of records that differs from the published one, or a judgement of
            an unknown passage, is an error instead of a remark.
        on_progress: Told records written and the published number of them.

    Returns:
        Counts and remarks; the same stands in ``meta.json``.

    Raises:
        DataError: If the format is unknown, the source is missing or broken, or a check fails and
            ``strict`` is set.
    """
    if format is None and source.startswith(PREFIX):
        format = IR_DATASETS
    if format not in FORMATS:
        raise DataError(f"no format '{format}'; there are {', '.join(FORMATS)}")
    rules = _Rules(strict=strict, on_progress=on_progress)
    if format == TRIPLES:
        return _convert_triples(Path(source), out=Path(out), rules=rules)
    if format == IR_DATASETS:
        return _write(read_ir_datasets(source), format=format, out=Path(out), rules=rules)
    return _write(READERS[format](Path(source)), format=format, out=Path(out), rules=rules)


@dataclass
class _Watch:
    """Looks at the passages that pass by."""

    rules: _Rules
    total: int
    ids: UniqueIds
    seen: int = 0
    titled: int = 0

    def passages(self, passages: Iterable[Passage]) -> Iterator[Passage]:
        for passage in passages:
            self.seen += 1
            self.titled += bool(passage.title)
            self.ids.add(passage.id)
            _tell(self.rules, self.seen, self.total)
            yield passage


def _write(material: Material, *, format: str, out: Path, rules: _Rules) -> Conversion:
    published = [material.expected.get(name, 0) for name in ("collection.tsv", "psgs_w100.tsv")]
    watch = _Watch(rules, max(published), UniqueIds())
    result: list[Conversion] = []

    def meta(counts: BeirCounts) -> dict[str, Any]:
        done = Conversion(
            out=out,
            counts=counts,
            titled=watch.titled,
            dangling=_dangling(material.qrels, watch.ids),
            checks=_checks(material),
            notes=tuple(material.notes),
        )
        if rules.strict:
            _refuse(done)
        result.append(done)
        return {
            "format": format,
            "files": [_described(path) for path in material.files],
            "titles": {"with": watch.titled, "without": counts.passages - watch.titled},
            "judgements_of_unknown_passages": done.dangling,
            "checks": [vars(check) for check in done.checks],
            "notes": material.notes,
            **material.about,
        }

    write_beir(
        out,
        passages=watch.passages(material.passages),
        queries=material.queries,
        qrels=dict(material.qrels),
        meta=meta,
        also=material.also,
    )
    return result[0]


def _convert_triples(source: Path, *, out: Path, rules: _Rules) -> Conversion:
    counted: Counter[str] = Counter()
    groups = 0
    with atomic_file(out) as handle:
        for record in read_triples(source, counted=counted):
            groups += 1
            _tell(rules, counted.total(), PUBLISHED.get(plain_name(source), 0))
            handle.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        material = Material(passages=(), queries=(), qrels={}, counted=counted, expected=PUBLISHED)
        done = Conversion(out=out, groups=groups, checks=_checks(material))
        if rules.strict:
            _refuse(done)
    return done


def _tell(rules: _Rules, done: int, total: int) -> None:
    if rules.on_progress is not None and done % _LINES_PER_REPORT == 0:
        rules.on_progress(done, max(done, total))


def _checks(material: Material) -> tuple[Check, ...]:
    return tuple(
        Check(what=name, expected=material.expected[name], found=found)
        for name, found in sorted(material.counted.items())
        if name in material.expected
    )


def _dangling(qrels: Mapping[str, Qrels], ids: UniqueIds) -> int:
    return sum(
        passage_id not in ids
        for grades_of_split in qrels.values()
        for grades in grades_of_split.values()
        for passage_id in grades
    )


def _refuse(done: Conversion) -> None:
    faults = [
        f"{check.what} holds {check.found:,} records, {check.expected:,} were published"
        for check in done.differences
    ]
    if done.dangling:
        faults.append(f"{done.dangling:,} judgements name passages that are not there")
    if faults:
        raise DataError("; ".join(faults) + " (without --strict this is only reported)")


def _described(path: Path) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
