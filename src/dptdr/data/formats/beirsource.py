"""Read BEIR folders from other sources, to check and rewrite them."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from dptdr.data.formats.source_data import SourceData
from dptdr.io.beir import BeirFolder
from dptdr.records import Document, Query

Record = TypeVar("Record", Document, Query)


def read_beir(source: Path) -> SourceData:
    """Read the records of a BEIR folder.

    Raises:
        DataError: If it is not a BEIR folder, or a judgement is malformed.
    """
    folder = BeirFolder(source)
    counted: Counter[str] = Counter()
    return SourceData(
        passages=_counted(folder.documents(), counted, path=folder.corpus_path),
        queries=_counted(folder.queries(), counted, path=folder.queries_path),
        qrels={split: folder.qrels(split) for split in folder.splits()},
        files=[
            folder.corpus_path,
            folder.queries_path,
            *(folder.qrels_path(split) for split in folder.splits()),
        ],
        counted=counted,
    )


def _counted(records: Iterable[Record], counted: Counter[str], *, path: Path) -> Iterator[Record]:
    for record in records:
        counted[path.name] += 1
        yield record
