"""Mining statistics, small enough to be saved after every block.

Everything round-trips through JSON, so an interrupted run reports the same as an uninterrupted one.
"""

import bisect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dptdr.errors import NegativesError
from dptdr.io.ids import stable_hash
from dptdr.mining.settings import MiningSettings

RANK_BOUNDS = (1, 10, 20, 50, 100, 200, 500)
SAMPLE_SIZE = 2_000
SOURCE_SAMPLE_SIZE = 500
EXAMPLES = 20


@dataclass(kw_only=True)
class SourceCounts:
    """Counts of one source.

    Attributes:
        queries: Queries ranked by the source.
        candidates: Texts in its rank windows that are not positives.
        blocked: Texts in its rank windows that are positives or their duplicates.
        dropped: Candidates in its windows removed by the teacher's bounds, by reason.
        negatives: Selected negatives ranked by the source, in its window or not.
        alone: Selected negatives ranked by no other source.
        above_positive: Selected negatives that it ranks above the query's best positive.
        with_positive: Selected negatives of queries whose positive it ranks.
        ranks: Selected negatives by rank: up to each of :data:`RANK_BOUNDS`, then beyond.
    """

    queries: int = 0
    candidates: int = 0
    blocked: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    negatives: int = 0
    alone: int = 0
    above_positive: int = 0
    with_positive: int = 0
    ranks: list[int] = field(default_factory=lambda: [0] * (len(RANK_BOUNDS) + 1))


class BottomSample:
    """A uniform sample of a stream: the items whose keys have the smallest hashes.

    It is independent of the stream's order and of interruptions.
    """

    def __init__(self, size: int, items: Iterable[Sequence[Any]] = ()) -> None:
        self.size = size
        self.items: list[tuple[int, Any]] = [(int(key), item) for key, item in items]
        self._bound = 2**64
        self.trim()

    def offer(self, key: str, make: Callable[[], Any]) -> None:
        """Add an item if it may belong to the sample.

        Args:
            make: Returns the item, any JSON value; called only if the item is added.
        """
        self.offer_hashed(stable_hash(key), make)

    def offer_hashed(self, place: int, make: Callable[[], Any]) -> None:
        """Like :meth:`offer`, for a key that is already hashed."""
        if place >= self._bound:
            return
        self.items.append((place, make()))
        if len(self.items) >= 2 * self.size:
            self.trim()

    def trim(self) -> None:
        """Drop items outside the sample."""
        self.items = sorted(self.items, key=lambda entry: entry[0])[: self.size]
        if len(self.items) == self.size:
            self._bound = self.items[-1][0]

    def values(self) -> list[Any]:
        """Return the sample in hash order."""
        self.trim()
        return [item for _, item in self.items]


@dataclass(kw_only=True)
class Statistics:
    """Cumulative counts of a mining run.

    Attributes:
        queries: Processed queries with a positive.
        without_positive: Judged queries skipped because the corpus has none of their positives.
        without_negative: Queries without any negative found.
        without_negative_example: The first of them.
        negatives: Negatives written.
        margin_not_applied: Queries whose positive scores 0 or below, so that the relative margin
            does not apply.
        sources: Source name to its counts.
        overlap: Pair of sources, as ``a|b`` in source order, to the number of selected negatives
            ranked by both.
        negative_characters: Sample of the lengths of selected negatives.
        positive_characters: Sample of the lengths of positives.
        source_scores: Source name to a sample of its own scores, for selected negatives and the
            best positive it ranks for the query.
        teacher: Sample of teacher scores of selected negatives and their positives.
        examples: Sample of dropped candidates, for manual inspection.
    """

    queries: int = 0
    without_positive: int = 0
    without_negative: int = 0
    without_negative_example: str = ""
    negatives: int = 0
    margin_not_applied: int = 0
    sources: dict[str, SourceCounts] = field(default_factory=dict)
    overlap: dict[str, int] = field(default_factory=dict)
    negative_characters: BottomSample = field(default_factory=lambda: BottomSample(SAMPLE_SIZE))
    positive_characters: BottomSample = field(default_factory=lambda: BottomSample(SAMPLE_SIZE))
    source_scores: dict[str, BottomSample] = field(default_factory=dict)
    teacher: BottomSample = field(default_factory=lambda: BottomSample(SAMPLE_SIZE))
    examples: BottomSample = field(default_factory=lambda: BottomSample(EXAMPLES))

    def as_json(self) -> dict[str, Any]:
        """Convert the statistics to JSON values, to be read by :meth:`from_json`."""
        value: dict[str, Any] = {}
        for name in self.__dataclass_fields__:
            entry = getattr(self, name)
            if isinstance(entry, BottomSample):
                entry.trim()
                value[name] = entry.items
            elif name == "sources":
                value[name] = {source: asdict(counts) for source, counts in entry.items()}
            elif name == "source_scores":
                for sample in entry.values():
                    sample.trim()
                value[name] = {source: sample.items for source, sample in entry.items()}
            else:
                value[name] = entry
        return value

    @classmethod
    def from_json(cls, value: Any) -> "Statistics":
        """Restore the statistics from :meth:`as_json`.

        Raises:
            NegativesError: If the value is malformed.
        """
        try:
            fields = dict(value)
            for name, entry in vars(cls()).items():
                if isinstance(entry, BottomSample):
                    fields[name] = BottomSample(entry.size, [tuple(item) for item in fields[name]])
            fields["sources"] = {
                source: SourceCounts(**counts) for source, counts in fields["sources"].items()
            }
            fields["source_scores"] = {
                source: BottomSample(SOURCE_SAMPLE_SIZE, [tuple(item) for item in items])
                for source, items in fields["source_scores"].items()
            }
            return cls(**fields)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise NegativesError(
                f"the counts of the interrupted run are damaged ({error}); use overwrite to start "
                "over"
            ) from None

    def offer_source_score(self, source: str, key: int, scores: tuple[float, float]) -> None:
        """Sample a source's scores of a negative and its positive.

        Args:
            scores: Scores of the negative and of the best positive.
        """
        sample = self.source_scores.setdefault(source, BottomSample(SOURCE_SAMPLE_SIZE))
        sample.offer_hashed(key, lambda: list(scores))


def rank_bucket(rank: int) -> int:
    """Return a rank's index in :attr:`SourceCounts.ranks`."""
    return bisect.bisect_left(RANK_BOUNDS, rank)


def warnings_of(statistics: Statistics, settings: MiningSettings) -> list[str]:
    """Return warnings about a finished mining run, one line each."""
    lines: list[str] = []
    for source in settings.sources:
        counts = statistics.sources[source.name]
        if counts.candidates == 0:
            found = "only positives" if counts.blocked else "nothing"
            lines.append(
                f"source '{source.name}' finds {found} at ranks {source.range_min} to "
                f"{source.range_max}; widen its ranks or remove it"
            )
    if statistics.without_negative:
        lines.append(
            f"{statistics.without_negative:,} queries have no candidates left, such as "
            f"'{statistics.without_negative_example}'; widen the ranks or relax the teacher's "
            "bounds"
        )
    if statistics.without_positive:
        lines.append(
            f"{statistics.without_positive:,} judged queries have no positive in the corpus, or "
            "none of the least grade, and were skipped"
        )
    if statistics.margin_not_applied:
        lines.append(
            f"{statistics.margin_not_applied:,} queries have a positive with a teacher score of 0 "
            "or below, to which relative_margin does not apply; use absolute_margin"
        )
    return lines


def nothing_found(statistics: Statistics) -> str:
    """Explain in one line why no negatives were found."""
    if statistics.queries == 0:
        return (
            f"none of the {statistics.without_positive} judged queries has a positive in the "
            "corpus, of the least grade if one is given; check the data with `dptdr data inspect`"
        )
    return (
        f"no negatives found for any of the {statistics.queries} queries: every candidate is a "
        "positive, a duplicate of one, or dropped by the teacher's bounds; widen the ranks or "
        "relax the bounds"
    )
