"""Convert rows of pairs, triplets, scored pairs or clicks to a data folder."""

import hashlib
import math
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from dptdr.data.formats.columns import (
    LISTS,
    Columns,
    TableSettings,
    find_columns,
    split_name,
)
from dptdr.data.formats.msmarco import write_lines
from dptdr.data.formats.pairstore import NegativesOfQuery, PairStore, text_id
from dptdr.data.formats.source_data import SourceData
from dptdr.data.formats.table_rows import Row, object_rows
from dptdr.data.formats.writing import Conversion, Progress, Rules, write_source_data
from dptdr.data.training_records import DROPPED
from dptdr.errors import DataError
from dptdr.io.lines import describe
from dptdr.io.trec import LARGEST_GRADE
from dptdr.records import Passage, Query

Splits: TypeAlias = Sequence[tuple[str, Iterable[Row]]]

_DEFAULT_SETTINGS = TableSettings()


def folder_from_records(
    rows: Iterable[Any] | Mapping[str, Iterable[Any]],
    *,
    out: Path | str,
    settings: TableSettings = _DEFAULT_SETTINGS,
    on_progress: Progress | None = None,
) -> Conversion:
    """Write pairs, triplets, scored pairs or clicks as a data folder, atomically.

    Args:
        rows: Dicts, tuples (query, positive, negatives), a ``datasets.Dataset`` or a pandas
            ``DataFrame``; or a mapping from split names to any of these.

    Returns:
            Counts of records read, written and dropped. Hard negatives are in
            ``negatives-SPLIT.jsonl``, for ``dptdr train --negatives``.

    Raises:
            DataError: If columns are missing, a row is malformed, or no pairs are left.
    """
    if isinstance(rows, Mapping):
        splits = [(split_name(k), object_rows(v, where=f"split '{k}'")) for k, v in rows.items()]
    else:
        splits = [(settings.split or "train", object_rows(rows))]
    source_data = pairs_data(splits, settings=settings, source="Python objects")
    rules = Rules(on_progress=on_progress)
    return write_source_data(source_data, format="records", out=Path(out), rules=rules)


def pairs_data(
    splits: Splits, *, settings: TableSettings, source: str, files: Sequence[Path] = ()
) -> SourceData:
    """Prepare to read records from rows, lazily.

    Args:
        splits: Names of splits with their rows; a name may repeat.

    Returns:
        The records; passages must be read before queries and judgements.

    Raises:
        DataError: If a held-out split already exists in the source.
    """
    shares = {"dev": settings.dev_share, "test": settings.test_share}
    both = sorted({name for name, _ in splits} & {name for name, share in shares.items() if share})
    if both:
        raise DataError(f"the source already has a split '{both[0]}'; omit --{both[0]}-share")
    return _Reading(splits, settings=settings, source=source, files=files).source_data


class _Reading:
    """A single pass over the rows that yields passages and stores everything else."""

    def __init__(
        self, splits: Splits, *, settings: TableSettings, source: str, files: Sequence[Path]
    ) -> None:
        self._settings = settings
        self._splits = splits
        self._source = source
        self._store = PairStore()
        self._names: tuple[str, ...] = ()
        self._columns: Columns | None = None
        self._graded = ""
        self.source_data = SourceData(
            passages=self._passages(),
            queries=self._store.queries(),
            qrels=self._store,
            files=list(files),
            complete=True,
            also=self._finish,
        )
        self._dropped = self.source_data.dropped

    def _passages(self) -> Iterator[Passage]:
        rows = 0
        for split, part in self._splits:
            self._graded = ""
            for row in part:
                rows += 1
                yield from self._take(row, split)
        if not rows:
            raise DataError("expected rows, got none")
        if not len(self._store):
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self._dropped.items())
            files = self.source_data.files
            raise DataError(
                f"no pair is left of {rows:,} rows: {reasons}",
                path=files[0] if len(files) == 1 else None,
            )

    def _take(self, row: Row, split: str) -> Iterator[Passage]:
        """Store a row and yield its new passages."""
        columns = self._columns_of(row)
        query = _text(row, columns.query)
        positives = [text for text in _texts(row, columns.positive) if text.strip()]
        if not query.strip() or not positives:
            self._dropped["rows without a " + ("positive" if query.strip() else "query")] += 1
            return
        grade = self._grade(row, columns)
        if grade is None:
            self._dropped[f"rows without {self._graded}"] += 1
            return
        asked = Query(text_id(query), query)
        split = self._held_out(split, asked.id)
        title = _text(row, columns.title) if columns.title else ""
        number: int | None = None
        for text in positives:
            passage = _passage(text, title)
            if passage.id == asked.id:
                self._dropped["pairs of a text with itself"] += 1
                continue
            if number is None:
                number = self._store.add_query(asked)
            self._judge((split, number, passage.id), grade, columns, row)
            if self._store.add_passage(passage.id):
                yield passage
        if number is None:
            return
        for column in columns.negatives:
            texts = _texts(row, column)
            # Only positives get the row's title, so their ids cannot tell.
            kept = [text for text in texts if text not in positives]
            self._dropped[DROPPED] += len(texts) - len(kept)
            for text in kept:
                yield from self._negative(text, split, asked.id, number)

    def _negative(self, text: str, split: str, query_id: str, number: int) -> Iterator[Passage]:
        if not text.strip():
            return
        passage = _passage(text, "")
        if passage.id == query_id:
            self._dropped["negatives that are the query itself"] += 1
            return
        self._store.add_negative(split, number, passage.id)
        if self._store.add_passage(passage.id):
            yield passage

    def _judge(self, pair: tuple[str, int, str], grade: int, columns: Columns, row: Row) -> None:
        before = self._store.add_pair(*pair, grade)
        if before is None:
            return
        self._dropped["duplicate pairs"] += 1
        if columns.clicks is not None:
            self._store.set_grade(*pair, _bounded(before + grade, row, columns.clicks))
        elif grade > before:
            self._store.set_grade(*pair, grade)

    def _columns_of(self, row: Row) -> Columns:
        names = tuple(row.values)
        if self._columns is None or names != self._names:
            for name in names:
                if not isinstance(name, str):
                    raise row.error(f"expected texts as names of columns, got {describe(name)}")
            try:
                found = find_columns(names, self._settings)
            except DataError as error:
                raise row.error(error.reason) from None
            if self._columns is None:
                self.source_data.read_as = f"{found.kind} in {self._source} ({found.described()})"
            self._names, self._columns = names, found
        return self._columns

    def _grade(self, row: Row, columns: Columns) -> int | None:
        column = columns.clicks or columns.score
        if column is None:
            # A record of JSON lines may lack what others have.
            return None if self._graded else 1
        self._graded = "clicks" if columns.clicks else "a score"
        value = _number(row, column)
        if value is None:
            return None
        if self._settings.min_score is not None and columns.score is not None:
            return int(value >= self._settings.min_score)
        if value != int(value) or (columns.clicks is not None and value < 0):
            if columns.clicks:
                raise row.error(f"expected a whole number of at least 0, got {value:g}", column)
            raise row.error(
                f"expected a whole number, got {value:g}; name the score of a relevant pair by "
                "--min-score",
                column,
            )
        return _bounded(int(value), row, column)

    def _held_out(self, split: str, query_id: str) -> str:
        """Choose a split for a query, independently of the order of rows."""
        settings = self._settings
        if not settings.dev_share and not settings.test_share:
            return split
        digest = hashlib.sha256(f"{settings.seed} {query_id}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        if place < settings.test_share:
            return "test"
        return "dev" if place < settings.test_share + settings.dev_share else split

    def _finish(self, folder: Path) -> None:
        """Write the hard negatives and add notes."""
        source_data, store = self.source_data, self._store
        self._dropped[DROPPED] += store.drop_negatives_that_answer()
        for split in store:
            path = folder / f"negatives-{split}.jsonl"
            count = write_lines(path, map(_mined_record, store.negatives(split)))
            if count:
                source_data.negatives[split] = count
            else:
                path.unlink()
        repeated = store.queries_in_several_splits()
        if repeated:
            source_data.notes.append(f"{repeated:,} queries are in more than one split")
        if self._columns and self._columns.clicks and self._dropped["duplicate pairs"]:
            source_data.notes.append("the clicks of duplicate pairs were summed")


def _mined_record(group: NegativesOfQuery) -> dict[str, Any]:
    negatives = [
        {"id": passage_id, "sources": {"table": {"rank": rank}}}
        for rank, passage_id in enumerate(group.negatives, 1)
    ]
    return {**group._asdict(), "negatives": negatives}


def _passage(text: str, title: str) -> Passage:
    return Passage(text_id(f"{title}\0{text}" if title else text), text, title)


def _texts(row: Row, column: str) -> list[str]:
    if column.lower() not in LISTS:
        return [_text(row, column)]
    value = row.values[column]
    if _is_missing(value):
        return []
    if hasattr(value, "tolist"):
        # pandas and NumPy hold lists as arrays.
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise row.error(f"expected a list of strings, got {describe(value)}", column)
    return [_as_text(item, row, column) for item in value]


def _text(row: Row, column: str) -> str:
    return _as_text(row.values[column], row, column)


def _as_text(value: object, row: Row, column: str) -> str:
    """Return a text; numbers are written out, and nothing is an empty one."""
    if _is_missing(value):
        return ""
    if isinstance(value, bool) or not isinstance(value, str | numbers.Real):
        raise row.error(f"expected a text, got {describe(value)}", column)
    try:
        text = str(value)
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise row.error(f"cannot encode as UTF-8: {error.reason}", column) from None
    except ValueError:
        raise row.error(f"expected a text, got {describe(value)}", column) from None
    return text


def _is_missing(value: object) -> bool:
    """Return whether there is no value: None, NaN, or pandas' own marks."""
    if isinstance(value, str):
        return False
    return (
        value is None
        or type(value).__name__ in {"NAType", "NaTType"}
        or (isinstance(value, numbers.Real) and bool(value != value))
    )


def _bounded(grade: int, row: Row, column: str | None) -> int:
    if abs(grade) > LARGEST_GRADE:
        raise row.error(
            f"expected grades up to {LARGEST_GRADE:,}, equal pairs together, got {grade:,}; "
            "scale them down",
            column,
        )
    return grade


def _number(row: Row, column: str) -> float | None:
    value = row.values[column]
    if _is_missing(value) or (isinstance(value, str) and not value.strip()):
        return None
    try:
        # float() would also take "1_000" and other scripts' digits.
        if isinstance(value, str) and ("_" in value or not value.isascii()):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise row.error(f"expected a number, got {describe(value)}", column) from None
    if math.isinf(number):
        raise row.error("expected a number, got infinity", column)
    return None if math.isnan(number) else number
