"""Whole-word masking: a pure function of tokens, words and a generator."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

MASKED_SHARE = 0.8
RANDOM_SHARE = 0.1

# Scripts without spaces would make one word of a sentence; longer words are cut to this.
LONGEST_WORD = 8


class Masked(NamedTuple):
    """Masked tokens, their places and targets."""

    ids: Int[np.ndarray, " tokens"]
    places: Int[np.ndarray, " masked"]
    targets: Int[np.ndarray, " masked"]


def mask_words(
    ids: Int[np.ndarray, " tokens"],
    *,
    starts: Bool[np.ndarray, " tokens"],
    maskable: Bool[np.ndarray, " tokens"],
    share: float,
    mask_id: int,
    ordinary: Int[np.ndarray, " ordinary"],
    generator: np.random.Generator,
) -> Masked:
    """Choose whole words up to a share of the tokens, and mask most of their tokens.

    Words are drawn in random order; one that would exceed the share is passed over, and at least
    one word is taken where there is any. Of the chosen tokens 80 % become the mask token, 10 % a
    random ordinary token, 10 % stay as they are.

    Args:
        ids: Tokens without special ones.
        starts: Which tokens begin a word.
        maskable: Which tokens may be chosen; a word with another token in it is never chosen.
        share: Share of the maskable tokens to choose.
        mask_id: The mask token.
        ordinary: Tokens to draw random ones from.
        generator: The only source of chance.

    Returns:
        The tokens as they are read, the chosen places in rising order, and their true tokens.

    Source:
        Devlin et al., arXiv 1810.04805, section 3.1; whole words as in the authors' later release.
        Differs: words of more than 8 tokens are cut, so that a text without spaces is no one word.
    """
    words = split_words(starts)
    words = [word for word in words if maskable[word].all()]
    budget = round(share * sum(len(word) for word in words))
    chosen: list[np.ndarray] = []
    taken = 0
    for number in generator.permutation(len(words)):
        word = words[number]
        if taken and taken + len(word) > budget:
            continue
        chosen.append(word)
        taken += len(word)
        if taken >= budget:
            break
    if not chosen:
        none = np.zeros(0, dtype=ids.dtype)
        return Masked(ids.copy(), none, none.copy())
    places = np.sort(np.concatenate(chosen)).astype(ids.dtype)
    read = ids.copy()
    draw = generator.random(len(places))
    read[places[draw < MASKED_SHARE]] = mask_id
    swapped = places[(draw >= MASKED_SHARE) & (draw < MASKED_SHARE + RANDOM_SHARE)]
    read[swapped] = ordinary[generator.integers(len(ordinary), size=len(swapped))]
    return Masked(read, places, ids[places])


def split_words(starts: Bool[np.ndarray, " tokens"]) -> list[Int[np.ndarray, " word"]]:
    """Return the places of each word's tokens, long words cut.

    Args:
        starts: Which tokens begin a word.
    """
    if len(starts) == 0:
        return []
    places = np.arange(len(starts))
    words = np.split(places, np.flatnonzero(starts[1:]) + 1)
    return [
        word[begin : begin + LONGEST_WORD]
        for word in words
        for begin in range(0, len(word), LONGEST_WORD)
    ]
