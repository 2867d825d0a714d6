"""Column roles of a table: guessed from the names, or given by the user."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dptdr.errors import ConfigError, DataError

QUERY = ("anchor", "query", "question")
POSITIVE = ("positive", "positives", "answer", "passage", "document")
SCORE = ("score", "label")
CLICKS = ("clicks",)
_NEGATIVE = re.compile(r"negatives?|negative_\d+")
LISTS = frozenset({"positives", "negatives"})
"""Columns that hold a list of texts; every other column holds one text."""


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """How the rows of a table are read.

    Args:
        query_column: Column of the query; ``None`` guesses by name, as in all the columns.
        positive_column: Column of the passage that answers it.
        negative_columns: Columns of passages that do not.
        title_column: Column of the positive's title; never guessed.
        score_column: Column of whole numbers, taken as grades, or of scores for ``min_score``.
        clicks_column: Column of clicks, added up over equal pairs and taken as grades.
        min_score: Pairs with at least this score are relevant (grade 1), the others not (0).
        split: Name of the split, where the source does not name it.
        dev_share: Share of the queries held out as the split dev.
        test_share: Share of the queries held out as the split test.
        seed: Decides which queries are held out.
    """

    query_column: str | None = None
    positive_column: str | None = None
    negative_columns: tuple[str, ...] = ()
    title_column: str | None = None
    score_column: str | None = None
    clicks_column: str | None = None
    min_score: float | None = None
    split: str | None = None
    dev_share: float = 0.0
    test_share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        # Written so that NaN, which compares as false, is refused too.
        if not (min(self.dev_share, self.test_share) >= 0 and self.dev_share + self.test_share < 1):
            raise ConfigError(
                "expected shares from 0 that leave some queries to train, got "
                f"dev {self.dev_share} and test {self.test_share}"
            )
        if self.min_score is not None and not math.isfinite(self.min_score):
            raise ConfigError(f"expected a least score that is a number, got {self.min_score}")
        if self.split is not None:
            split_name(self.split)


def split_name(name: object) -> str:
    """Return our name of a split (``dev`` for ``validation``).

    Raises:
        ConfigError: If the name cannot be a file's.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*", name):
        raise ConfigError(f"expected the name of a split such as train, got {name!r}")
    return "dev" if name.lower() in {"validation", "valid", "val", "eval"} else name


class Columns(NamedTuple):
    """The columns of a table by role."""

    query: str
    positive: str
    negatives: tuple[str, ...]
    title: str | None
    score: str | None
    clicks: str | None
    unused: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The kind of table that these columns make."""
        if self.clicks is not None:
            return "click log"
        if self.negatives:
            return "triplets"
        if self.score is not None:
            return "scored pairs"
        is_faq = (self.query.lower(), self.positive.lower()) == ("question", "answer")
        return "FAQ table" if is_faq else "pairs"

    def described(self) -> str:
        """Return a readable description of the columns, for the output."""
        parts = [f"query = {self.query}", f"positive = {self.positive}"]
        if self.negatives:
            parts.append(f"negatives = {', '.join(self.negatives)}")
        for name, column in (("title", self.title), ("score", self.score), ("clicks", self.clicks)):
            if column is not None:
                parts.append(f"{name} = {column}")
        if self.unused:
            parts.append(f"not used = {', '.join(self.unused)}")
        return "; ".join(parts)


def find_columns(names: Sequence[str], settings: TableSettings) -> Columns:
    """Return the columns by role.

    Raises:
        DataError: If some are missing or two could be meant; one message lists those there are.
    """
    search = _Search(names)
    query = search.one(settings.query_column, QUERY, option="--query-column")
    positive = search.one(settings.positive_column, POSITIVE, option="--positive-column")
    title = search.one(settings.title_column, (), option="--title-column", needed=False)
    clicks = search.one(settings.clicks_column, CLICKS, option="--clicks-column", needed=False)
    score = None
    if clicks is None or settings.score_column is not None:
        score = search.one(settings.score_column, SCORE, option="--score-column", needed=False)
    negatives = search.negatives(settings.negative_columns)
    if settings.min_score is not None and score is None:
        search.problems.append("no column of scores for --min-score")
    if search.problems or query is None or positive is None:
        have = ", ".join(name[:40] for name in list(names)[:20]) or "none"
        raise DataError(f"{'; '.join(search.problems)}; the columns are: {have}")
    used = {query, positive, title, clicks, score, *negatives}
    return Columns(
        query=query,
        positive=positive,
        negatives=negatives,
        title=title,
        score=score,
        clicks=clicks,
        unused=tuple(name for name in names if name not in used),
    )


class _Search:
    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self.problems: list[str] = []

    def one(
        self, wanted: str | None, known: Sequence[str], *, option: str, needed: bool = True
    ) -> str | None:
        if wanted is not None:
            return self._named(wanted)
        found = [name for name in self._names if name.strip().lower() in known]
        if len(found) > 1:
            self.problems.append(f"{' or '.join(found)}: say which with {option}")
        elif not found and needed:
            self.problems.append(f"expected a column {' or '.join(known)} (or {option})")
        return found[0] if found else None

    def negatives(self, wanted: Sequence[str]) -> tuple[str, ...]:
        if wanted:
            named = [self._named(name) for name in wanted]
            return tuple(name for name in named if name is not None)
        found = [name for name in self._names if _NEGATIVE.fullmatch(name.strip().lower())]
        # By number, so that the order of columns in a file does not matter.
        return tuple(sorted(found, key=lambda name: (len(name), name)))

    def _named(self, wanted: str) -> str | None:
        if wanted in self._names:
            return wanted
        self.problems.append(f"no column '{wanted}'")
        return None
