"""Convert records of each training format to training groups."""

import math
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

from dptdr.data.tokens import TokenTexts
from dptdr.errors import DataError
from dptdr.io.beir import BeirFolder
from dptdr.io.lines import describe
from dptdr.io.store import PassageStore, QueryStore
from dptdr.records import Passage, TrainingGroup

Format: TypeAlias = Literal["groups", "mined", "tevatron", "tevatron-ids", "dpr"]
Negative = TypeVar("Negative")

DROPPED = "negatives that are a positive"
"""What :func:`without_positives` drops, for messages."""

_MARKS: dict[Format, tuple[str, ...]] = {
    "tevatron": ("query", "positive_passages"),
    "tevatron-ids": ("query_text", "positive_document_ids"),
    "dpr": ("question", "positive_ctxs"),
    "groups": ("query", "positives"),
    "mined": ("query_id", "positives"),
}
"""Required fields of each format; the first matching format is used."""


class Place(NamedTuple):
    """Position of a record; the line number is computed only for error messages."""

    path: Path
    row: int
    line: Callable[[], int]

    def error(self, reason: str, field: str | None = None) -> DataError:
        """Create an error that names this record."""
        return DataError(reason, path=self.path, line=self.line(), field=field)


class Lookup:
    """Looks up texts by id or token ids; the folder is read only if a record refers to it."""

    def __init__(self, folder: BeirFolder | None, *, tokens: TokenTexts | None = None) -> None:
        self.folder = folder
        self.tokens = tokens
        self.strings_are: Literal["ids", "texts"] | None = None

    @cached_property
    def passages(self) -> PassageStore:
        """The folder's passages."""
        return PassageStore(self._folder())

    @cached_property
    def queries(self) -> QueryStore:
        """The folder's queries."""
        return QueryStore(self._folder())

    def _folder(self) -> BeirFolder:
        if self.folder is None:
            raise LookupError
        return self.folder

    def text_of(self, ids: object, field: str, place: "Place") -> str | None:
        """Decode a list of token ids; ``None`` if the value is something else."""
        if not isinstance(ids, list) or not ids or not all(type(i) is int for i in ids):
            return None
        if self.tokens is None:
            raise place.error(
                "contains token ids, which can be decoded only during training", field
            )
        try:
            return self.tokens.decode(ids)
        except (ValueError, IndexError, OverflowError, TypeError) as error:
            raise place.error(str(error), field) from None

    def decide(self, record: Mapping[str, Any], *, format: Format) -> None:
        """Decide whether strings in the file are texts or ids.

        In mined negatives they are ids. In groups they are ids if a folder is given and contains
        one of the first record's strings as an id; otherwise they are texts.
        """
        if format == "mined":
            self.strings_are = "ids"
        elif self.folder is None:
            self.strings_are = "texts"
        elif format == "groups":
            sides = [record.get(name) for name in ("positives", "negatives")]
            items = [item for side in sides if isinstance(side, list) for item in side]
            strings = [item for item in items if isinstance(item, str)]
            if strings:
                known = any(item in self.passages for item in strings)
                self.strings_are = "ids" if known else "texts"

    def check_text(self, string: str, field: str, place: "Place") -> None:
        """Reject a string that may not be a text."""
        if self.strings_are is None:
            raise place.error(
                f"expected an object with 'text' or 'id', as in the first record, got '{string}'",
                field,
            )
        if self.folder is not None and string in self.passages:
            raise place.error(
                f"expected a text, as in the first record, got the passage id '{string}'", field
            )


def recognise(record: Mapping[str, Any], *, place: Place) -> Format:
    """Detect the format of a training file from a record.

    Raises:
        DataError: If the record matches no format; lists the known formats.
    """
    for name, fields in _MARKS.items():
        if all(field in record for field in fields):
            return name
    known = "; ".join(f"{name}: {' and '.join(fields)}" for name, fields in _MARKS.items())
    raise place.error(
        f"expected a training record with the fields of one format ({known}), "
        f"got {', '.join(record) or 'no fields'}"
    )


def group_of_record(
    record: Mapping[str, Any], *, format: Format, lookup: Lookup, place: Place
) -> TrainingGroup:
    """Convert a record to a training group.

    Raises:
        DataError: If the record is malformed, has no positives, or refers to an unknown id.
    """
    try:
        group = _READERS[format](record, lookup, place)
    except LookupError:
        raise place.error(
            "refers to texts by id; specify the data folder that contains them"
        ) from None
    if not group.positives:
        raise place.error("expected at least one positive, got none", _POSITIVES[format])
    return group


def without_positives(
    negatives: Iterable[Negative],
    positives: Iterable[object],
    *,
    names: Callable[[Any], Collection[Hashable]],
) -> list[Negative]:
    """Drop negatives that are also a positive of the same query, as mining does.

    Args:
        names: What identifies a passage: its id, its text, or both.
    """
    known = {name for item in positives for name in names(item)}
    return [item for item in negatives if known.isdisjoint(names(item))]


def count_dropped(record: Mapping[str, Any], *, format: Format) -> int:
    """Count a record's negatives that :func:`group_of_record` drops, without looking up texts."""
    sides = [record.get(name) for name in (_POSITIVES[format], _negatives_field(record, format))]
    positives, negatives = (side if isinstance(side, list) else [] for side in sides)
    return len(negatives) - len(without_positives(negatives, positives, names=_names))


def _names(item: object) -> list[Hashable]:
    """Return ids and texts of a passage in any format."""
    if not isinstance(item, dict):
        return [repr(item) if isinstance(item, list) else str(item)]
    found: list[Hashable] = [str(item[name]) for name in _ID_FIELDS if item.get(name) is not None]
    if isinstance(item.get("text"), str):
        found.append(Passage("", item["text"], item.get("title") or "").content)
    return found


def _negatives_field(record: Mapping[str, Any], format: Format) -> str:
    # As in DPR: hard negatives from BM25, or other negatives if there are none.
    if format == "dpr":
        return "hard_negative_ctxs" if record.get("hard_negative_ctxs") else "negative_ctxs"
    return _POSITIVES[format].replace("positive", "negative")


class _Item(NamedTuple):
    text: str
    id: str | None
    score: float | None

    @property
    def names(self) -> list[Hashable]:
        """What identifies the passage."""
        return [("text", self.text), *([] if self.id is None else [("id", self.id)])]


def _own(record: Mapping[str, Any], lookup: Lookup, place: Place) -> TrainingGroup:
    """Convert ``groups`` and ``mined``, which differ only in the meaning of strings."""
    query_id = _optional_id(record, "query_id", place)
    if "query" in record or query_id is None:
        tokens = lookup.text_of(record.get("query"), "query", place)
        query = _text(record, "query", place) if tokens is None else tokens
    else:
        found = lookup.queries.get(query_id)
        if found is None:
            raise place.error(f"query '{query_id}' is not in the data folder", "query_id")
        query = found.text
    sides = [
        [_own_item(item, name, lookup, place) for item in _list(record, name, place)]
        for name in ("positives", "negatives")
    ]
    return _group(query_id, query, _with_teacher(record, sides[0], place), sides[1], place)


def _with_teacher(record: Mapping[str, Any], positives: list[_Item], place: Place) -> list[_Item]:
    """Add the scores from ``positive_teacher`` to the positives."""
    scores = _list(record, "positive_teacher", place)
    if not scores:
        return positives
    if len(scores) != len(positives):
        raise place.error(
            f"expected one score for each of {len(positives)} positives, got {len(scores)}",
            "positive_teacher",
        )
    return [
        item._replace(score=_score({"score": score}, "positive_teacher", place))
        for item, score in zip(positives, scores, strict=True)
    ]


def _own_item(item: object, field: str, lookup: Lookup, place: Place) -> _Item:
    if isinstance(item, str):
        if lookup.strings_are == "ids":
            return _Item(_content(item, field, lookup, place), item, None)
        lookup.check_text(item, field, place)
        return _Item(item, None, None)
    if (tokens := lookup.text_of(item, field, place)) is not None:
        return _Item(tokens, None, None)
    if not isinstance(item, dict):
        raise place.error(f"expected texts, ids or objects, got {describe(item)}", field)
    item_id = _optional_id(item, "id", place)
    score = _score(item, field, place)
    if "text" in item:
        title = _text(item, "title", place) if item.get("title") is not None else ""
        return _Item(Passage("", _text(item, "text", place), title).content, item_id, score)
    if item_id is None:
        raise place.error("expected an object with 'text' or 'id', got neither", field)
    return _Item(_content(item_id, field, lookup, place), item_id, score)


def _content(passage_id: str, field: str, lookup: Lookup, place: Place) -> str:
    passage = lookup.passages.get(passage_id)
    if passage is None:
        raise place.error(f"passage '{passage_id}' is not in the data folder", field)
    return passage.content


def _score(item: Mapping[str, Any], field: str, place: Place) -> float | None:
    value = item.get("score", item.get("teacher"))
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise place.error(f"expected a numeric score, got {describe(value)}", field)
    return float(value)


def _tevatron(record: Mapping[str, Any], lookup: Lookup, place: Place) -> TrainingGroup:
    del lookup
    sides = [
        [
            _foreign_item(item, name, place, id_fields=("docid",))
            for item in _list(record, name, place)
        ]
        for name in ("positive_passages", "negative_passages")
    ]
    query_id = _optional_id(record, "query_id", place)
    return _group(query_id, _text(record, "query", place), sides[0], sides[1], place)


def _tevatron_ids(record: Mapping[str, Any], lookup: Lookup, place: Place) -> TrainingGroup:
    sides = []
    for name in ("positive_document_ids", "negative_document_ids"):
        ids = [_optional_id({name: item}, name, place) for item in _list(record, name, place)]
        sides.append([_Item(_content(i or "", name, lookup, place), i, None) for i in ids])
    query_id = _optional_id(record, "query_id", place)
    return _group(query_id, _text(record, "query_text", place), sides[0], sides[1], place)


def _dpr(record: Mapping[str, Any], lookup: Lookup, place: Place) -> TrainingGroup:
    del lookup
    sides = [
        [
            _foreign_item(item, name, place, id_fields=("passage_id", "psg_id"))
            for item in _list(record, name, place)
        ]
        for name in ("positive_ctxs", _negatives_field(record, "dpr"))
    ]
    return _group(None, _text(record, "question", place), sides[0], sides[1], place)


def _foreign_item(item: object, field: str, place: Place, *, id_fields: Sequence[str]) -> _Item:
    """Read a passage object of another project's file (Tevatron or DPR).

    Its ``score`` is ignored, because it is that of the retriever that found the passage, not a
    teacher's.
    """
    if not isinstance(item, dict):
        raise place.error(f"expected objects, got {describe(item)}", field)
    if not isinstance(item.get("text"), str):
        raise place.error(
            f"expected a 'text' in each object, got {describe(item.get('text'))}", field
        )
    found = next((item[name] for name in id_fields if item.get(name) is not None), None)
    passage = Passage("", item["text"], item.get("title") or "")
    return _Item(passage.content, None if found is None else str(found), None)


def _group(
    query_id: str | None,
    query: str,
    positives: Sequence[_Item],
    negatives: Sequence[_Item],
    place: Place,
) -> TrainingGroup:
    negatives = without_positives(negatives, positives, names=lambda item: item.names)
    return TrainingGroup(
        query_id=str(place.row) if query_id is None else query_id,
        query=query,
        positives=tuple(item.text for item in positives),
        negatives=tuple(item.text for item in negatives),
        positive_ids=_all_or_none([item.id for item in positives], "ids of positives", place),
        negative_ids=_all_or_none([item.id for item in negatives], "ids of negatives", place),
        positive_scores=_all_or_none(
            [item.score for item in positives], "scores of positives", place
        ),
        negative_scores=_all_or_none(
            [item.score for item in negatives], "scores of negatives", place
        ),
    )


def _all_or_none(values: Sequence[Any], what: str, place: Place) -> tuple[Any, ...]:
    given = [value for value in values if value is not None]
    if given and len(given) != len(values):
        raise place.error(f"expected {what} for all or for none, got {len(given)} of {len(values)}")
    return tuple(given)


def _list(record: Mapping[str, Any], name: str, place: Place) -> list[Any]:
    value = record.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise place.error(f"expected a list, got {describe(value)}", name)
    return value


def _text(record: Mapping[str, Any], name: str, place: Place) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        raise place.error(f"expected a string, got {describe(value)}", name)
    return value


def _optional_id(record: Mapping[str, Any], name: str, place: Place) -> str | None:
    value = record.get(name)
    if value is None or isinstance(value, str):
        return value
    if type(value) is int:
        return str(value)
    raise place.error(f"expected an id, got {describe(value)}", name)


_READERS: dict[Format, Callable[[Mapping[str, Any], Lookup, Place], TrainingGroup]] = {
    "groups": _own,
    "mined": _own,
    "tevatron": _tevatron,
    "tevatron-ids": _tevatron_ids,
    "dpr": _dpr,
}
_ID_FIELDS = ("id", "docid", "passage_id", "psg_id")
_POSITIVES: dict[Format, str] = {
    "groups": "positives",
    "mined": "positives",
    "tevatron": "positive_passages",
    "tevatron-ids": "positive_document_ids",
    "dpr": "positive_ctxs",
}
