import numpy as np

from dptdr.pretraining.spans import Span, cut_spans, distinct_spans, draw_spans, shorten


def every(tokens):
    return np.ones(tokens, dtype=bool)


def test_long_document_is_cut_evenly():
    spans = cut_spans(every(100), span_tokens=40, min_span_tokens=5)
    assert spans == [Span(0, 33), Span(33, 67), Span(67, 100)]


def test_document_of_twice_the_least_is_cut_in_two():
    assert cut_spans(every(10), span_tokens=40, min_span_tokens=5) == [Span(0, 5), Span(5, 10)]


def test_shorter_document_is_one_span_and_an_empty_one_none():
    assert cut_spans(every(9), span_tokens=40, min_span_tokens=5) == [Span(0, 9)]
    assert cut_spans(every(0), span_tokens=40, min_span_tokens=5) == []


def test_cuts_fall_between_words():
    starts = np.zeros(20, dtype=bool)
    starts[[0, 7, 13]] = True
    assert cut_spans(starts, span_tokens=40, min_span_tokens=5) == [Span(0, 7), Span(7, 20)]


def test_word_longer_than_a_span_is_cut():
    starts = np.zeros(50, dtype=bool)
    starts[0] = True
    spans = cut_spans(starts, span_tokens=20, min_span_tokens=5)
    assert max(stop - start for start, stop in spans) <= 20
    assert spans[0].start == 0
    assert spans[-1].stop == 50


def test_repeated_text_counts_once():
    ids = np.asarray([1, 2, 3, 1, 2, 3])
    assert distinct_spans([Span(0, 3), Span(3, 6)], ids) == [Span(0, 3)]


def test_drawn_spans_differ():
    spans = [Span(0, 5), Span(5, 10), Span(10, 15)]
    seen = set()
    for seed in range(40):
        one, two = draw_spans(spans, generator=np.random.default_rng(seed))
        assert one != two
        seen.add((one, two))
    assert len(seen) == 6


def test_a_share_of_the_spans_is_short():
    lengths = []
    for seed in range(400):
        span = shorten(
            Span(10, 50),
            starts=every(60),
            share=0.25,
            min_span_tokens=8,
            generator=np.random.default_rng(seed),
        )
        assert span.start == 10
        lengths.append(span.stop - span.start)
    assert min(lengths) >= 8
    assert 0.15 < sum(length < 40 for length in lengths) / 400 < 0.35
