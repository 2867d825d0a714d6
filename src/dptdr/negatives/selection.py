"""One query's candidates: what may be a negative, in which order, and where it came from."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64, UInt64

from dptdr.negatives.corpus import CorpusTable
from dptdr.negatives.runtable import Ranking
from dptdr.negatives.settings import Sampling, SourceSettings


class Provenance(NamedTuple):
    """Where a source ranked a passage."""

    rank: int
    score: float


@dataclass(kw_only=True)
class Candidates:
    """Candidates of one query while its negatives are chosen.

    A candidate is known by the hash of its normalised text, so one text is one candidate whatever
    ids it has.

    Attributes:
        orders: Source to the texts of its rank window that may be negatives, in the order of trial.
        rows: Text to the corpus row that stands for it.
        provenance: Source to text to rank and score, over the whole depth that the source has.
        blocked: Source to the number of texts of its window that are positives or their copies.
        best_positive: Source to the best rank of a positive, 0 where it ranks none.
        scores: Text to the teacher's score, of those scored so far.
        dropped: Text to the reason for its removal.
    """

    orders: dict[str, list[int]]
    rows: dict[int, int]
    provenance: dict[str, dict[int, Provenance]]
    blocked: dict[str, int]
    best_positive: dict[str, int]
    scores: dict[int, float] = field(default_factory=dict)
    dropped: dict[int, str] = field(default_factory=dict)

    def wanted(self, quotas: Mapping[str, int], *, scored: bool) -> list[int]:
        """Return the texts that have to be scored before every quota can be filled.

        Args:
            quotas: Source to negatives wanted.
            scored: Whether a teacher scores at all; without, nothing is wanted.

        Returns:
            Texts without a score, each once; empty where the choice is settled.
        """
        if not scored:
            return []
        wanted: dict[int, None] = {}
        for source, order in self.orders.items():
            room = quotas[source]
            for text in order:
                if room == 0:
                    break
                if text in self.dropped:
                    continue
                room -= 1
                if text not in self.scores:
                    wanted[text] = None
        return list(wanted)

    def chosen(self, quotas: Mapping[str, int]) -> list[int]:
        """Return the negatives: each source's quota, united.

        Args:
            quotas: Source to negatives wanted.

        Returns:
            Texts by best rank over all sources; equal ranks by corpus row.
        """
        taken: set[int] = set()
        for source, order in self.orders.items():
            kept = (text for text in order if text not in self.dropped)
            taken.update(text for text, _ in zip(kept, range(quotas[source]), strict=False))
        return sorted(taken, key=lambda text: (self._best_rank(text), self.rows[text]))

    def sources_of(self, text: int) -> dict[str, Provenance]:
        """Return rank and score of a text in each source that holds it."""
        return {source: known[text] for source, known in self.provenance.items() if text in known}

    def _best_rank(self, text: int) -> int:
        return min(entry.rank for entry in self.sources_of(text).values())


def find_candidates(
    query_id: str,
    *,
    positives: Sequence[int] | Int64[np.ndarray, " positives"],
    rankings: Mapping[str, Ranking],
    sources: Sequence[SourceSettings],
    corpus: CorpusTable,
    seed: int,
) -> Candidates:
    """Return the candidates of one query.

    Args:
        query_id: The query; with the seed it decides every draw.
        positives: Corpus rows of its judged positives.
        rankings: Source name to ranking; a source that does not hold the query is left out.
        sources: Settings of the sources.
        corpus: The corpus.
        seed: Seed of the sampling.

    Returns:
        The candidates; none is a positive, or has the text of one.
    """
    positive_texts = corpus.text_hashes[np.asarray(positives, dtype=np.int64)]
    found = Candidates(orders={}, rows={}, provenance={}, blocked={}, best_positive={})
    for source in sources:
        ranking = rankings.get(source.name)
        if ranking is None:
            continue
        texts = corpus.text_hashes[ranking.rows]
        forbidden = np.isin(texts, positive_texts)
        hits = np.flatnonzero(forbidden)
        found.best_positive[source.name] = int(hits[0]) + 1 if len(hits) else 0
        found.provenance[source.name] = _provenance(texts, ranking.scores)
        # Where several ids have one text, the corpus's first of those seen stands for it.
        for text, row in zip(texts.tolist(), ranking.rows.tolist(), strict=True):
            found.rows[text] = min(row, found.rows.get(text, row))
        window = slice(source.first_rank - 1, source.last_rank)
        free = ~forbidden[window]
        found.blocked[source.name] = int((~free).sum())
        order = sampling_order(
            texts[window][free],
            ranking.scores[window][free],
            sampling=source.sampling,
            key=(seed, query_id, source.name),
        )
        found.orders[source.name] = list(dict.fromkeys(order.tolist()))
    return found


def sampling_order(
    texts: UInt64[np.ndarray, " window"],
    scores: Float[np.ndarray, " window"],
    *,
    sampling: Sampling,
    key: tuple[int, str, str],
) -> UInt64[np.ndarray, " window"]:
    """Return the texts of a window in the order in which they are tried.

    Args:
        texts: Texts of the window, best first.
        scores: Their scores.
        sampling: How to draw.
        key: Seed, query id and source name; nothing else decides the draw.

    Returns:
        All texts of the window. ``score`` draws without replacement with weights
        ``exp((score - mean) / deviation)`` over the window, by adding Gumbel noise.

    Source:
        Gumbel-top-k trick: Kool, van Hoof, Welling, ICML 2019. Differs: nothing.
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
    """Return a generator that depends on the key alone, not on what was drawn before."""
    digest = hashlib.blake2b(repr(key).encode("utf-8"), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def _provenance(
    texts: UInt64[np.ndarray, " hits"], scores: Float[np.ndarray, " hits"]
) -> dict[int, Provenance]:
    """Return text to its best rank and that rank's score."""
    known: dict[int, Provenance] = {}
    for rank, (text, score) in enumerate(_pairs(texts, scores), start=1):
        known.setdefault(text, Provenance(rank, score))
    return known


def _pairs(
    texts: UInt64[np.ndarray, " hits"], scores: Float[np.ndarray, " hits"]
) -> Iterator[tuple[int, float]]:
    return zip(texts.tolist(), scores.tolist(), strict=True)
