"""Split documents into spans of tokens."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int


class Span(NamedTuple):
    """Tokens ``start`` to ``stop`` (exclusive) of a document."""

    start: int
    stop: int


def cut_spans(
    starts: Bool[np.ndarray, " tokens"], *, span_tokens: int, min_span_tokens: int
) -> list[Span]:
    """Split a document into equally sized spans that end between words.

    Args:
        starts: True for tokens that begin a word.
        span_tokens: Maximum tokens per span.
        min_span_tokens: A shorter document is still split in two if both halves have at least this
            many tokens.

    Returns:
        Spans in reading order, without gaps or overlap: one for a document too short to split, none
        for an empty one.
    """
    tokens = len(starts)
    if tokens == 0:
        return []
    count = max(-(-tokens // span_tokens), 2 if tokens >= 2 * min_span_tokens else 1)
    while True:
        bounds = _bounds(starts, count=count, span_tokens=span_tokens)
        # Aligning cuts with words may make the last span too long: then use more spans.
        if tokens - bounds[-1] <= span_tokens:
            break
        count += 1
    return [Span(a, b) for a, b in zip(bounds, [*bounds[1:], tokens], strict=True)]


def _bounds(starts: Bool[np.ndarray, " tokens"], *, count: int, span_tokens: int) -> list[int]:
    bounds = [0]
    for number in range(1, count):
        wanted = max(bounds[-1] + 1, round(len(starts) * number / count))
        bounds.append(_word_start(starts, wanted, after=bounds[-1], span_tokens=span_tokens))
    return bounds


def _word_start(
    starts: Bool[np.ndarray, " tokens"], wanted: int, *, after: int, span_tokens: int
) -> int:
    """Return the last word start up to ``wanted``, splitting a word that is too long."""
    wanted = min(wanted, after + span_tokens)
    candidates = np.flatnonzero(starts[after + 1 : wanted + 1])
    return after + 1 + int(candidates[-1]) if len(candidates) else wanted


def distinct_spans(spans: list[Span], ids: Int[np.ndarray, " tokens"]) -> list[Span]:
    """Remove duplicate spans, keeping the first of each in reading order.

    Args:
        ids: The document's tokens.
    """
    first: dict[bytes, Span] = {}
    for span in spans:
        first.setdefault(ids[span.start : span.stop].tobytes(), span)
    return list(first.values())


def draw_spans(spans: list[Span], *, generator: np.random.Generator) -> list[Span]:
    """Draw two different spans in random order, or fewer if there are not enough.

    Args:
        generator: The only source of randomness.
    """
    if len(spans) < 2:
        return list(spans)
    chosen = generator.choice(len(spans), size=2, replace=False)
    return [spans[int(number)] for number in chosen]


def shorten(
    span: Span,
    *,
    starts: Bool[np.ndarray, " tokens"],
    share: float,
    min_span_tokens: int,
    generator: np.random.Generator,
) -> Span:
    """Shorten a random share of spans to random lengths, between words.

    Args:
        starts: True for tokens of the document that begin a word.
        share: Probability of shortening.
        min_span_tokens: Minimum length, up to the end of a word.
        generator: The only source of randomness.

    Returns:
        The span or a prefix of it.
    """
    short = generator.random() < share
    whole = span.stop - span.start
    length = int(generator.integers(min_span_tokens, max(min_span_tokens, whole) + 1))
    if not short or length >= whole:
        return span
    bounds = span.start + np.flatnonzero(starts[span.start : span.stop + 1])
    later = bounds[bounds >= span.start + length]
    return Span(span.start, int(later[0])) if len(later) else span
