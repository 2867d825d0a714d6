"""Pseudo-queries from unlabelled passages: titles, extracted sentences, key phrases."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from dptdr.records import Passage

Kind = Literal["title", "sentence", "phrase"]

_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\n+")
_MIN_WORDS = {"title": 2, "sentence": 4}
_PHRASE_WORDS = 5
# Words in more than this share of the passages are not distinctive.
_COMMON = 0.2


class PseudoQuery(NamedTuple):
    """A pseudo-query, and its passage with the query removed."""

    text: str
    row: int
    kind: Kind
    rest: str


Make: TypeAlias = Callable[[Passage, np.random.Generator], tuple[str, str] | None]


def pseudo_queries(
    passages: Sequence[Passage], *, count: int, rows: Sequence[int], seed: int
) -> list[PseudoQuery]:
    """Draw pseudo-queries from passages, determined by the seed.

    Every passage yields one kind of pseudo-query, drawn at random, before any yields a second.

    Args:
        passages: The pool; key phrases are words that occur in few of its passages.
        rows: Indices in the pool of passages to draw from.
        seed: Random seed.

    Returns:
        Up to ``count`` pseudo-queries in random order.
    """
    frequency = Counter(
        word for passage in passages for word in {w.lower() for w in _WORD.findall(passage.content)}
    )
    phrase = _Phrases(frequency, passages=len(passages))
    makers: tuple[tuple[Kind, Make], ...] = (
        ("title", _title),
        ("sentence", _sentence),
        ("phrase", phrase),
    )
    order = np.random.default_rng([31, seed]).permutation(np.asarray(rows, dtype=np.int64))
    found: list[PseudoQuery] = []
    for turn in range(len(makers)):
        for row in order.tolist():
            if len(found) == count:
                return found
            generator = np.random.default_rng([32, seed, row])
            kinds = generator.permutation(len(makers)).tolist()
            made = [(makers[k][0], makers[k][1](passages[row], generator)) for k in kinds]
            able = [(kind, *pair) for kind, pair in made if pair is not None]
            if turn < len(able):
                kind, text, rest = able[turn]
                found.append(PseudoQuery(text, row, kind, rest))
    return found


def _title(passage: Passage, generator: np.random.Generator) -> tuple[str, str] | None:
    del generator
    enough = len(_WORD.findall(passage.title)) >= _MIN_WORDS["title"]
    return (passage.title, passage.text) if enough and passage.text.strip() else None


def _sentence(passage: Passage, generator: np.random.Generator) -> tuple[str, str] | None:
    sentences = [text for text in _SENTENCE_END.split(passage.text) if text.strip()]
    long = [n for n, s in enumerate(sentences) if len(_WORD.findall(s)) >= _MIN_WORDS["sentence"]]
    if len(sentences) < 2 or not long:
        return None
    taken = int(generator.choice(long))
    rest = " ".join(sentences[:taken] + sentences[taken + 1 :])
    return sentences[taken].strip(), f"{passage.title} {rest}".strip()


class _Phrases:
    """Extracts key phrases: the words with the highest tf-idf, in reading order."""

    def __init__(self, frequency: Counter[str], *, passages: int) -> None:
        self._frequency = frequency
        self._passages = passages

    def __call__(self, passage: Passage, generator: np.random.Generator) -> tuple[str, str] | None:
        del generator
        words = [word.lower() for word in _WORD.findall(passage.content)]
        best = self._best(Counter(words))
        if len(best) < 2:
            return None
        return " ".join(word for word in dict.fromkeys(words) if word in best), passage.content

    def _best(self, counts: Counter[str]) -> set[str]:
        most = max(3.0, _COMMON * self._passages)
        telling: Iterable[str] = (w for w in counts if 1 < self._frequency[w] <= most)
        weight = {w: counts[w] * math.log(self._passages / self._frequency[w]) for w in telling}
        return set(sorted(weight, key=lambda word: (-weight[word], word))[:_PHRASE_WORDS])
