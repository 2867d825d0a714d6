"""Convert a source in any format to a data folder, with counts and checksums."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import orjson

from dptdr.data.formats.beirsource import read_beir
from dptdr.data.formats.columns import TableSettings
from dptdr.data.formats.document_folder import read_documents
from dptdr.data.formats.dpr import read_dpr
from dptdr.data.formats.guessing import guess_format
from dptdr.data.formats.irdatasets import PREFIX, read_ir_datasets
from dptdr.data.formats.msmarco import read_msmarco, read_top1000, read_triples
from dptdr.data.formats.source_data import PUBLISHED, SourceData, plain_name
from dptdr.data.formats.tablesource import read_tables
from dptdr.data.formats.tevatron import read_tevatron
from dptdr.data.formats.writing import Conversion, Progress, Rules, checks, write_source_data
from dptdr.errors import ConfigError, DataError
from dptdr.io.atomic import atomic_file

READERS: dict[str, Callable[[Path], SourceData]] = {
    "documents": read_documents,
    "beir": read_beir,
    "dpr": read_dpr,
    "msmarco": read_msmarco,
    "msmarco-top1000": read_top1000,
    "tevatron": read_tevatron,
}
TABLE = "table"
TRIPLES = "msmarco-triples"
IR_DATASETS = "ir_datasets"
FORMATS = (TABLE, *READERS, TRIPLES, IR_DATASETS)
"""Values of ``--format``."""


def convert(
    source: Path | str,
    *,
    format: str | None = None,
    out: Path | str,
    table: TableSettings | None = None,
    strict: bool = False,
    on_progress: Progress | None = None,
) -> Conversion:
    """Convert a source to a data folder (or triples to a training file), atomically.

    Args:
        source: A file or folder, or ``ir:NAME`` for ir_datasets.
        format: One of :data:`FORMATS`; detected from the files if ``None``.
        strict: Raise an error, rather than just report it, if record counts differ from the
            published ones or judgements refer to unknown passages.

    Raises:
        ConfigError: If table settings are given for a different format.
        DataError: If the format is unknown, the source is missing or malformed, or a check fails
            and ``strict`` is set.
    """
    path = Path(source)
    if format is None:
        format = IR_DATASETS if str(source).startswith(PREFIX) else guess_format(path)
    if format not in FORMATS:
        raise DataError(f"expected a format among {', '.join(FORMATS)}, got '{format}'")
    if table is not None and table != TableSettings() and format != TABLE:
        raise ConfigError(
            f"column, split and share options apply only to tables, but the format is {format}"
        )
    rules = Rules(strict=strict, on_progress=on_progress)
    if format == TRIPLES:
        return _convert_triples(path, out=Path(out), rules=rules)
    if format == TABLE:
        source_data = read_tables(path, table or TableSettings())
    elif format == IR_DATASETS:
        source_data = read_ir_datasets(str(source))
    else:
        source_data = READERS[format](path)
    return write_source_data(source_data, format=format, out=Path(out), rules=rules)


def _convert_triples(source: Path, *, out: Path, rules: Rules) -> Conversion:
    counted: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    groups = 0
    with atomic_file(out) as handle:
        for record in read_triples(source, counted=counted, dropped=dropped):
            groups += 1
            rules.tell(counted.total(), PUBLISHED.get(plain_name(source), 0))
            handle.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        source_data = SourceData(
            passages=(), queries=(), qrels={}, counted=counted, expected=PUBLISHED
        )
        done = Conversion(
            out=out,
            read_as=TRIPLES,
            groups=groups,
            dropped={reason: count for reason, count in dropped.items() if count},
            checks=checks(source_data),
        )
        rules.refuse(done)
    return done
