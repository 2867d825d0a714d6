import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dptdr.pretraining.masking import LONGEST_WORD, mask_words, split_words
from dptdr.pretraining.spans import cut_spans, distinct_spans, draw_spans, shorten
from helpers.pretraining import gradient_of, made_objective, relative_error

MASK = 4
SPECIAL = 3


@st.composite
def sequences(draw, *, most=120):
    """Tokens, where words begin, and a seed."""
    tokens = draw(st.integers(0, most))
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    ids = generator.integers(3, 60, size=tokens)
    starts = generator.random(tokens) < draw(st.floats(0.0, 1.0))
    starts[:1] = True
    return ids, starts, seed


def masked(ids, starts, *, seed, share=0.15):
    return mask_words(
        ids,
        starts=starts,
        maskable=ids != SPECIAL,
        share=share,
        mask_id=MASK,
        ordinary=np.arange(5, 60),
        generator=np.random.default_rng(seed),
    )


@given(sequences(), st.floats(0.05, 0.5))
def test_whole_words_are_masked_and_as_many_as_asked_for(sequence, share):
    ids, starts, seed = sequence
    made = masked(ids, starts, seed=seed, share=share)
    chosen = set(made.places.tolist())
    words = split_words(starts)
    for word in words:
        inside = chosen & set(word.tolist())
        assert inside in (set(), set(word.tolist()))
        if SPECIAL in ids[word]:
            assert not inside
    maskable = [word for word in words if SPECIAL not in ids[word]]
    budget = round(share * sum(map(len, maskable)))
    if maskable:
        assert chosen
        # Words that would exceed the share are passed over: only the first may.
        assert len(chosen) <= max(budget, LONGEST_WORD)
        assert len(chosen) > budget - max(map(len, maskable))
    else:
        assert not chosen


@given(sequences())
def test_what_is_not_chosen_stays_and_targets_are_the_truth(sequence):
    ids, starts, seed = sequence
    before = ids.copy()
    made = masked(ids, starts, seed=seed)
    assert np.array_equal(ids, before)
    kept = np.ones(len(ids), dtype=bool)
    kept[made.places] = False
    assert np.array_equal(made.ids[kept], ids[kept])
    assert np.array_equal(made.targets, ids[made.places])
    assert np.array_equal(made.places, np.unique(made.places))


@given(sequences())
def test_same_generator_same_mask(sequence):
    ids, starts, seed = sequence
    one, two = masked(ids, starts, seed=seed), masked(ids, starts, seed=seed)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_masks_are_80_10_10_of_15_percent():
    ids = np.random.default_rng(0).integers(5, 60, size=40_000)
    starts = np.random.default_rng(1).random(40_000) < 0.6
    made = masked(ids, starts, seed=2)
    assert len(made.places) / len(ids) == pytest.approx(0.15, abs=0.001)
    read = made.ids[made.places]
    assert np.mean(read == MASK) == pytest.approx(0.8, abs=0.02)
    # A random token is the true one once in 55 times.
    assert np.mean(read == made.targets) == pytest.approx(0.1 + 0.1 / 55, abs=0.015)


@given(sequences(most=400), st.integers(2, 40), st.integers(2, 90))
def test_spans_cover_a_document_without_overlap(sequence, least, most):
    ids, starts, _ = sequence
    most = max(least, most)
    spans = cut_spans(starts, span_tokens=most, min_span_tokens=least)
    places = [place for span in spans for place in range(span.start, span.stop)]
    assert places == list(range(len(ids)))
    assert all(0 < span.stop - span.start <= most for span in spans)


@given(sequences(most=300), st.integers(2, 20))
def test_two_spans_of_a_document_are_never_the_same_nor_overlap(sequence, least):
    ids, starts, seed = sequence
    spans = cut_spans(starts, span_tokens=40, min_span_tokens=least)
    generator = np.random.default_rng(seed)
    drawn = draw_spans(distinct_spans(spans, ids), generator=generator)
    if len(drawn) < 2:
        return
    one, two = (
        shorten(span, starts=starts, share=0.5, min_span_tokens=least, generator=generator)
        for span in drawn
    )
    assert not set(range(*one)) & set(range(*two))
    for short, span in zip((one, two), drawn, strict=True):
        assert span.start == short.start < short.stop <= span.stop


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One objective for a whole encoder and one for a prompt with dropout."""
    from helpers.pretraining import save_lm, topic_corpus

    folder = tmp_path_factory.mktemp("laws")
    corpus, source = topic_corpus(folder / "d"), save_lm(folder / "lm")
    prompt = {"prompt_length": 3, "dropout": 0.3}
    return [made_objective(corpus, source, prompt=p, batch_size=6) for p in (None, prompt)]


@settings(max_examples=12)
@given(chunk=st.integers(1, 12), step=st.integers(0, 1000), which=st.integers(0, 1))
def test_chunked_gradient_is_the_whole_one(made, chunk, step, which):
    objective = made[which]
    found = []
    for texts in (0, chunk):
        object.__setattr__(objective.config, "mini_batch_size", texts or None)
        found.append(gradient_of(objective, step=step))
    (stats, expected), (again, gradient) = found
    assert again.loss == pytest.approx(stats.loss, rel=1e-5)
    assert relative_error(gradient, expected) < 2e-5
