"""Whole-word masking as a pure function of tokens, words and a generator."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

MASKED_SHARE = 0.8
RANDOM_SHARE = 0.1

# Maximum word length: in scripts without spaces a whole sentence would be one word.
LONGEST_WORD = 8


class Masked(NamedTuple):
    """Masked tokens, with the masked indices and their targets."""

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
    """Select whole words up to a share of the tokens, and mask most of their tokens.

    Words are drawn in random order; words that would exceed the share are skipped, but at least one
    word is selected if there is any. Of the selected tokens, 80 % become the mask token, 10 % a
    random ordinary token, and 10 % stay unchanged.

    Args:
        ids: Tokens without special ones.
        starts: True for tokens that begin a word.
        maskable: True for tokens that may be selected; a word with any other token never is.
        share: Share of the maskable tokens to select.
        mask_id: The mask token.
        ordinary: Tokens to draw random replacements from.
        generator: The only source of randomness.

    Returns:
        The masked tokens, the selected indices in ascending order, and their original tokens.

    Source:
        Devlin et al., arXiv 1810.04805, section 3.1; whole words as in the authors' later release.
        Differs: words of more than 8 tokens are split, so that text without spaces is not one word.
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
    """Return the token indices of each word, splitting long words.

    Args:
        starts: True for tokens that begin a word.
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
