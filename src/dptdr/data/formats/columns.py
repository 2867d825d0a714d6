"""Column roles of a table, inferred from names or specified by the user."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dptdr.errors import ConfigError, DataError
from dptdr.io.beir import check_split

QUERY = ("anchor", "query", "question")
POSITIVE = ("positive", "positives", "answer", "passage", "document")
SCORE = ("score", "label")
CLICKS = ("clicks",)
_NEGATIVE = re.compile(r"negatives?|negative_\d+")
LISTS = frozenset({"positives", "negatives"})
"""Names of columns with lists of texts; all other columns contain single texts."""


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """Settings for reading the rows of a table.

    Args:
        query_column: Query column; columns are inferred from their names if ``None``.
        positive_column: Column of relevant passages.
        negative_columns: Columns of irrelevant passages.
        title_column: Column of the positive's title; never inferred.
        score_column: Column of integer grades, or of scores to compare with ``min_score``.
        clicks_column: Column of click counts, which are summed over equal pairs to give grades.
        min_score: Pairs with at least this score are relevant (grade 1), all others are not (0).
        split: Name of the split, if the source does not name one.
        dev_share: Fraction of queries held out as the dev split.
        test_share: Fraction of queries held out as the test split.
        seed: Determines which queries are held out.
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
                "expected non-negative shares that leave queries for training, got "
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
    name = check_split(name)
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
        """The kind of table, inferred from the columns."""
        if self.clicks is not None:
            return "click log"
        if self.negatives:
            return "triplets"
        if self.score is not None:
            return "scored pairs"
        is_faq = (self.query.lower(), self.positive.lower()) == ("question", "answer")
        return "FAQ table" if is_faq else "pairs"

    def described(self) -> str:
        """Describe the columns for the output."""
        parts = [f"query = {self.query}", f"positive = {self.positive}"]
        if self.negatives:
            parts.append(f"negatives = {', '.join(self.negatives)}")
        for name, column in (("title", self.title), ("score", self.score), ("clicks", self.clicks)):
            if column is not None:
                parts.append(f"{name} = {column}")
        if self.unused:
            parts.append(f"unused = {', '.join(self.unused)}")
        return "; ".join(parts)


def find_columns(names: Sequence[str], settings: TableSettings) -> Columns:
    """Assign the columns to roles.

    Raises:
        DataError: If a column is missing or ambiguous; lists the available columns.
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
        search.problems.append("no score column for --min-score")
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
            self.problems.append(f"{' or '.join(found)}: choose one with {option}")
        elif not found and needed:
            self.problems.append(f"expected a column {' or '.join(known)} (or {option})")
        return found[0] if found else None

    def negatives(self, wanted: Sequence[str]) -> tuple[str, ...]:
        if wanted:
            named = [self._named(name) for name in wanted]
            return tuple(name for name in named if name is not None)
        found = [name for name in self._names if _NEGATIVE.fullmatch(name.strip().lower())]
        # Sort by number, so that the order of columns in a file does not matter.
        return tuple(sorted(found, key=lambda name: (len(name), name)))

    def _named(self, wanted: str) -> str | None:
        if wanted in self._names:
            return wanted
        self.problems.append(f"no column '{wanted}'")
        return None
