"""Converting: from a source in any format to a data folder, counted and checksummed."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import orjson

from dptdr.data.formats.beirsource import read_beir
from dptdr.data.formats.dpr import read_dpr
from dptdr.data.formats.irdatasets import PREFIX, read_ir_datasets
from dptdr.data.formats.material import PUBLISHED, Material, plain_name
from dptdr.data.formats.msmarco import read_msmarco, read_top1000, read_triples
from dptdr.data.formats.tevatron import read_tevatron
from dptdr.data.formats.writing import Conversion, Progress, Rules, checks, write_material
from dptdr.errors import DataError
from dptdr.io.atomic import atomic_file

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
    rules = Rules(strict=strict, on_progress=on_progress)
    if format == TRIPLES:
        return _convert_triples(Path(source), out=Path(out), rules=rules)
    if format == IR_DATASETS:
        return write_material(read_ir_datasets(source), format=format, out=Path(out), rules=rules)
    return write_material(READERS[format](Path(source)), format=format, out=Path(out), rules=rules)


def _convert_triples(source: Path, *, out: Path, rules: Rules) -> Conversion:
    counted: Counter[str] = Counter()
    groups = 0
    with atomic_file(out) as handle:
        for record in read_triples(source, counted=counted):
            groups += 1
            rules.tell(counted.total(), PUBLISHED.get(plain_name(source), 0))
            handle.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        material = Material(passages=(), queries=(), qrels={}, counted=counted, expected=PUBLISHED)
        done = Conversion(out=out, groups=groups, checks=checks(material))
        rules.refuse(done)
    return done
