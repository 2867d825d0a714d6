"""Counts over all queries of a mining, kept small enough to be stored after every block.

Everything here can be written as JSON and read back without loss, so that a mining that was killed
reports the same as one that was not.
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
        queries: Queries that the source ranked.
        candidates: Texts in its rank windows that are no positive.
        blocked: Texts in its rank windows that are positives or copies of them.
        dropped: Candidates of its windows that the teacher's bounds removed, by reason.
        negatives: Chosen negatives that the source ranks, inside its window or not.
        alone: Chosen negatives that no other source ranks.
        above_positive: Chosen negatives that it ranks above the query's best positive.
        with_positive: Chosen negatives of queries whose positive it ranks.
        ranks: Chosen negatives by rank: up to each of :data:`RANK_BOUNDS`, then beyond.
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

    It does not depend on the order of the stream, nor on where it was interrupted.
    """

    def __init__(self, size: int, items: Iterable[Sequence[Any]] = ()) -> None:
        self.size = size
        self.items: list[tuple[int, Any]] = [(int(key), item) for key, item in items]
        self._bound = 2**64
        self.trim()

    def offer(self, key: str, make: Callable[[], Any]) -> None:
        """Add an item if it may belong to the sample.

        Args:
            make: Gives the item, anything that JSON can hold; called only where it is taken in.
        """
        self.offer_hashed(stable_hash(key), make)

    def offer_hashed(self, place: int, make: Callable[[], Any]) -> None:
        """Do as :meth:`offer`, for a key that was hashed already."""
        if place >= self._bound:
            return
        self.items.append((place, make()))
        if len(self.items) >= 2 * self.size:
            self.trim()

    def trim(self) -> None:
        """Drop items that do not belong to the sample."""
        self.items = sorted(self.items, key=lambda entry: entry[0])[: self.size]
        if len(self.items) == self.size:
            self._bound = self.items[-1][0]

    def values(self) -> list[Any]:
        """Return the sample in the order of its hashes."""
        self.trim()
        return [item for _, item in self.items]


@dataclass(kw_only=True)
class Statistics:
    """Counts of one mining so far.

    Attributes:
        queries: Queries with a positive that were gone through.
        without_positive: Judged queries left out, as the corpus holds no positive of theirs.
        without_negative: Queries that no negative was found for.
        without_negative_example: The first of them.
        negatives: Negatives written.
        margin_not_applied: Queries whose positive's score is not above 0, so that a share
            of it bounds nothing.
        sources: Source name to its counts.
        overlap: Pairs of sources, as ``a|b`` in the order of the sources, to the number of chosen
            negatives that both rank.
        negative_characters: Sample of the lengths of chosen negatives.
        positive_characters: Sample of the lengths of positives.
        source_scores: Source name to a sample of its own scores: of chosen negatives, and of the
            best positive that it ranks for the query.
        teacher: Sample of teacher's score and positive's score of chosen negatives.
        examples: Sample of dropped candidates, to be read.
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
        """Return everything as JSON values; :meth:`from_json` reads them."""
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
        """Return the counts that :meth:`as_json` gave.

        Raises:
            NegativesError: If it is something else.
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
                f"the counts of the unfinished mining are damaged ({error}); overwrite it to start "
                "over"
            ) from None

    def offer_source_score(self, source: str, key: int, scores: tuple[float, float]) -> None:
        """Sample a source's scores of a negative and of the positive.

        Args:
            scores: Of the negative, and of the best positive.
        """
        sample = self.source_scores.setdefault(source, BottomSample(SOURCE_SAMPLE_SIZE))
        sample.offer_hashed(key, lambda: list(scores))


def rank_bucket(rank: int) -> int:
    """Return the place of a rank in :attr:`SourceCounts.ranks`."""
    return bisect.bisect_left(RANK_BOUNDS, rank)


def warnings_of(statistics: Statistics, settings: MiningSettings) -> list[str]:
    """Return remarks on a finished mining, one line each.

    Returns:
        The lines; none where nothing is amiss.
    """
    lines: list[str] = []
    for source in settings.sources:
        counts = statistics.sources[source.name]
        if counts.candidates == 0:
            found = "only positives" if counts.blocked else "nothing"
            lines.append(
                f"source '{source.name}' finds {found} at ranks {source.range_min} to "
                f"{source.range_max}; widen its ranks or leave it out"
            )
    if statistics.without_negative:
        lines.append(
            f"{statistics.without_negative:,} queries have no candidate left, such as "
            f"'{statistics.without_negative_example}'; widen ranks or loosen the teacher's bounds"
        )
    if statistics.without_positive:
        lines.append(
            f"{statistics.without_positive:,} judged queries have no positive in the corpus and "
            "are left out"
        )
    if statistics.margin_not_applied:
        lines.append(
            f"{statistics.margin_not_applied:,} queries have a positive that the teacher scores "
            "at 0 or below: relative_margin bounds nothing there, absolute_margin would"
        )
    return lines


def nothing_found(statistics: Statistics) -> str:
    """Return why a mining without a single negative failed, in one line."""
    if statistics.queries == 0:
        return (
            f"none of the {statistics.without_positive} judged queries has a positive in the "
            "corpus, so there is nothing to mine for; check the data with `dptdr data inspect`"
        )
    return (
        f"no negative was found for any of the {statistics.queries} queries: every candidate is "
        "a positive, a copy of one, or dropped by the teacher's bounds; widen or loosen them"
    )
