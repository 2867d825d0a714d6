"""The file format of mined negatives, one query per line."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from dptdr.mining.candidates import Provenance
from dptdr.mining.settings import OutputFormat
from dptdr.records import Passage


class Negative(NamedTuple):
    """A selected negative."""

    id: str
    sources: Mapping[str, Provenance]
    teacher: float | None
    passage: Passage | None = None


class MinedQuery(NamedTuple):
    """A query with its positives and negatives, including texts if the format needs them."""

    query_id: str
    query: str
    positives: Sequence[str]
    positive_teacher: Sequence[float]
    negatives: Sequence[Negative]
    positive_passages: Sequence[Passage] = ()


def format_record(mined: MinedQuery, *, output: OutputFormat) -> bytes:
    """Format one query as a line.

    Args:
        output: ``dptdr``: ids with provenance; ``tevatron``: texts, for Tevatron's trainer.

    Returns:
        The UTF-8 line with its newline; empty in Tevatron's format for a query without negatives,
        which its trainer requires.
    """
    value: dict[str, Any] = {"query_id": mined.query_id}
    if output == "dptdr":
        value["positives"] = list(mined.positives)
        if mined.positive_teacher:
            value["positive_teacher"] = [rounded(score) for score in mined.positive_teacher]
        value["negatives"] = [_own_negative(negative) for negative in mined.negatives]
    else:
        negatives = [n.passage for n in mined.negatives if n.passage is not None]
        if not negatives:
            return b""
        value["query"] = mined.query
        value["positive_passages"] = [_text(passage) for passage in mined.positive_passages]
        value["negative_passages"] = [_text(passage) for passage in negatives]
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


def rounded(score: float) -> float:
    """Round a score to six significant digits."""
    return float(f"{score:.6g}")


def _own_negative(negative: Negative) -> dict[str, Any]:
    value: dict[str, Any] = {
        "id": negative.id,
        "sources": {
            source: {"rank": entry.rank, "score": rounded(entry.score)}
            for source, entry in negative.sources.items()
        },
    }
    if negative.teacher is not None:
        value["teacher"] = rounded(negative.teacher)
    return value


def _text(passage: Passage) -> dict[str, str]:
    return {"docid": passage.id, "title": passage.title, "text": passage.text}
