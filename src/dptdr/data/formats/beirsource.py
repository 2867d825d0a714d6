"""BEIR folders of others: checked, counted and written anew."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from dptdr.data.formats.material import Material, UniqueIds
from dptdr.errors import DataError
from dptdr.io.beir import CORPUS, QUERIES, BeirFolder
from dptdr.records import Passage, Query

Record = TypeVar("Record", Passage, Query)


def read_beir(source: Path) -> Material:
    """Return the records of a BEIR folder; ids must be unique.

    Args:
        source: The folder.

    Returns:
        The records, not yet read but for the judgements.

    Raises:
        DataError: If the folder is none of BEIR's, or a judgement is broken.
    """
    folder = BeirFolder(source)
    counted: Counter[str] = Counter()
    return Material(
        passages=_unique(folder.passages(), counted, path=folder.path / CORPUS),
        queries=_unique(folder.queries(), counted, path=folder.path / QUERIES),
        qrels={split: folder.qrels(split) for split in folder.splits()},
        files=[
            folder.path / CORPUS,
            folder.path / QUERIES,
            *(folder.qrels_path(split) for split in folder.splits()),
        ],
        counted=counted,
    )


def _unique(records: Iterable[Record], counted: Counter[str], *, path: Path) -> Iterator[Record]:
    seen = UniqueIds()
    for record in records:
        if not seen.add(record.id):
            raise DataError(
                f"id '{record.id}' stands a second time; `dptdr data inspect` gives the lines",
                path=path,
            )
        counted[path.name] += 1
        yield record
