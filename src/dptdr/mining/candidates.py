"""Select the candidates of a query, with their order and provenance."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64, UInt64

from dptdr.mining.corpus import CorpusTable
from dptdr.mining.runtable import RunTable
from dptdr.mining.settings import Sampling, SourceSettings


class Provenance(NamedTuple):
    """A passage's rank and score in a source."""

    rank: int
    score: float


class Choice(NamedTuple):
    """A candidate selected as a negative: hash of its text, corpus row, provenance."""

    text: int
    row: int
    sources: dict[str, Provenance]


@dataclass(frozen=True, kw_only=True)
class SourceHits:
    """One source's ranking for one query.

    Attributes:
        order: Texts in its rank window that may be negatives, in the order to try them.
        places: Text to its best position (from 0), over the full depth.
        scores: Scores by position.
        rows: Text to the first corpus row with it, among those ranked.
        blocked: Texts in its window that are positives or their duplicates.
        best_positive: Best rank of a positive or duplicate, 0 if it ranks none.
    """

    order: list[int]
    places: dict[int, int]
    scores: list[float]
    rows: dict[int, int]
    blocked: int
    best_positive: int


@dataclass(kw_only=True)
class Candidates:
    """Candidates of one query during selection.

    Candidates are identified by the hash of their normalised text, so duplicates with different ids
    count as one.

    Attributes:
        sources: Source name to its hits.
        scores: Text to teacher score, for those scored so far.
        dropped: Text to the reason for removal.
    """

    sources: dict[str, SourceHits]
    scores: dict[int, float] = field(default_factory=dict)
    dropped: dict[int, str] = field(default_factory=dict)

    def wanted(self, num_negatives: Mapping[str, int]) -> list[int]:
        """Return the texts to score next, so that each source gets its negatives.

        Returns:
            Distinct texts without a score; empty if the selection is final.
        """
        wanted: dict[int, None] = {}
        for source, hits in self.sources.items():
            room = num_negatives[source]
            for text in hits.order:
                if room == 0:
                    break
                if text in self.dropped:
                    continue
                room -= 1
                if text not in self.scores:
                    wanted[text] = None
        return list(wanted)

    def chosen(self, num_negatives: Mapping[str, int]) -> list["Choice"]:
        """Return the union of all sources' negatives.

        Returns:
            Negatives by best rank over all sources; ties by corpus row.
        """
        taken: set[int] = set()
        for source, hits in self.sources.items():
            order = hits.order
            if self.dropped:
                order = [text for text in order if text not in self.dropped]
            taken.update(order[: num_negatives[source]])
        found = [Choice(text, self.row_of(text), self.sources_of(text)) for text in taken]
        return sorted(found, key=lambda one: (min(e.rank for e in one.sources.values()), one.row))

    def row_of(self, text: int) -> int:
        """Return a text's corpus row, the first of those ranked."""
        return min(hits.rows[text] for hits in self.sources.values() if text in hits.rows)

    def sources_of(self, text: int) -> dict[str, Provenance]:
        """Return a text's rank and score in each source with it."""
        found: dict[str, Provenance] = {}
        for source, hits in self.sources.items():
            place = hits.places.get(text)
            if place is not None:
                found[source] = Provenance(place + 1, hits.scores[place])
        return found


def find_candidates(
    query_id: str,
    *,
    positives: Sequence[int] | Int64[np.ndarray, " positives"],
    runs: Mapping[str, RunTable],
    sources: Sequence[SourceSettings],
    corpus: CorpusTable,
    seed: int,
    banned: Sequence[int] | Int64[np.ndarray, " banned"] = (),
) -> Candidates:
    """Collect the candidates of one query.

    Args:
        query_id: The query; with the seed, determines every random draw.
        runs: Source name to run; sources without the query have no candidates.
        sources: Settings of the sources.
        seed: Sampling seed.

    Returns:
        The candidates, excluding positives, banned passages and duplicates of either.
    """
    banned_texts = corpus.text_hashes[np.asarray(banned, dtype=np.int64)]
    positive_texts = corpus.text_hashes[np.asarray(positives, dtype=np.int64)]
    found: dict[str, SourceHits] = {}
    for source in sources:
        ranking = runs[source.name].ranking(query_id, depth=source.range_max)
        if ranking is None:
            continue
        texts = corpus.text_hashes[ranking.rows]
        forbidden = np.isin(texts, positive_texts)
        hits = np.flatnonzero(forbidden)
        window = slice(source.range_min - 1, source.range_max)
        free = ~(forbidden | np.isin(texts, banned_texts))[window]
        order = sampling_order(
            texts[window][free],
            ranking.scores[window][free],
            sampling=source.sampling,
            key=(seed, query_id, source.name),
        )
        # Assign in reverse, so that each text keeps its lowest position and row.
        by_row = np.argsort(-ranking.rows)
        found[source.name] = SourceHits(
            order=list(dict.fromkeys(order.tolist())),
            places=dict(zip(texts[::-1].tolist(), range(len(texts) - 1, -1, -1), strict=True)),
            scores=ranking.scores.tolist(),
            rows=dict(zip(texts[by_row].tolist(), ranking.rows[by_row].tolist(), strict=True)),
            blocked=int((~free).sum()),
            best_positive=int(hits[0]) + 1 if len(hits) else 0,
        )
    return Candidates(sources=found)


def sampling_order(
    texts: UInt64[np.ndarray, " window"],
    scores: Float[np.ndarray, " window"],
    *,
    sampling: Sampling,
    key: tuple[int, str, str],
) -> UInt64[np.ndarray, " window"]:
    """Return a window's texts in the order to try them.

    Args:
        texts: Texts of the window, best first.
        key: Seed, query id and source name, which alone determine the draw.

    Returns:
        All texts of the window. ``score`` samples without replacement with weights
        ``exp((score - mean) / deviation)`` over the window, by adding Gumbel noise.

    Source:
        Gumbel-top-k trick: Kool, van Hoof, Welling, ICML 2019.
    """
    if sampling == "top" or len(texts) == 0:
        return texts
    generator = draw_generator(key)
    if sampling == "uniform":
        return texts[generator.permutation(len(texts))]
    deviation = float(scores.std())
    weights = (scores - scores.mean()) / deviation if deviation > 0 else np.zeros(len(scores))
    return texts[np.argsort(-(weights + generator.gumbel(size=len(scores))), kind="stable")]


def draw_generator(key: tuple[int, str, str]) -> np.random.Generator:
    """Create a random generator seeded by the key alone."""
    digest = hashlib.blake2b(repr(key).encode("utf-8"), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
