"""Laws of training: sampling is a pure function, and nothing is visited twice or forgotten."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from dptdr.training import sampling

ITEMS = st.integers(1, 40)
SEEDS = st.integers(0, 5)


@given(items=ITEMS, batch_size=st.integers(1, 17), epochs=st.integers(1, 4), seed=SEEDS)
def test_each_epoch_visits_each_item_once(items, batch_size, epochs, seed):
    steps = -(-items * epochs // batch_size)
    pairs = [
        pair
        for step in range(steps)
        for pair in sampling.batch_items(items=items, batch_size=batch_size, step=step, seed=seed)
    ]
    visited = Counter(pairs[: items * epochs])
    assert visited == {(epoch, item): 1 for epoch in range(epochs) for item in range(items)}


@given(
    items=ITEMS,
    batch_size=st.integers(1, 17),
    step=st.integers(0, 9),
    world=st.integers(1, 4),
    seed=SEEDS,
)
def test_processes_share_a_batch_without_overlap(items, batch_size, step, world, seed):
    whole = sampling.batch_items(items=items, batch_size=batch_size, step=step, seed=seed)
    shares = [sampling.split_evenly(whole, rank=rank, world=world) for rank in range(world)]
    assert Counter(pair for share in shares for pair in share) == Counter(whole)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(
    count=st.integers(0, 30),
    wanted=st.integers(0, 40),
    seed=SEEDS,
    epoch=st.integers(0, 5),
    item=st.integers(0, 100),
)
def test_drawn_negatives_are_different_places_and_a_pure_function(count, wanted, seed, epoch, item):
    place = {"seed": seed, "epoch": epoch, "item": item}
    drawn = sampling.draw_negatives(count, wanted=wanted, **place)
    assert len(drawn) == min(count, wanted)
    assert drawn == sorted(set(drawn))
    assert all(0 <= negative < count for negative in drawn)
    assert drawn == sampling.draw_negatives(count, wanted=wanted, **place)


@given(count=st.integers(1, 20), wanted=st.integers(1, 25), seed=SEEDS, item=st.integers(0, 100))
def test_drawn_positives_are_different_places(count, wanted, seed, item):
    drawn = sampling.draw_positives(count, wanted=wanted, seed=seed, epoch=0, item=item)
    assert len(drawn) == len(set(drawn)) == min(count, wanted)
    assert all(0 <= positive < count for positive in drawn)


@settings(max_examples=200)
@given(
    steps=st.integers(1, 400),
    share=st.floats(0, 1),
    schedule=st.sampled_from(["linear", "cosine", "constant"]),
)
def test_learning_rate_rises_then_falls_and_stays_within_the_peak(steps, share, schedule):
    from dptdr.config.training import TrainingConfig
    from dptdr.training.loop import rate_factor

    config = TrainingConfig(max_steps=steps, warmup_ratio=share, schedule=schedule)
    factors = [rate_factor(step, config=config) for step in range(steps)]
    peak = factors.index(max(factors))
    assert all(0.0 < factor <= 1.0 for factor in factors)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


@given(steps=st.integers(1, 300), count=st.integers(2, 40), every=st.integers(1, 40))
def test_the_last_step_is_always_evaluated(steps, count, every):
    from dptdr.config.training import TrainingConfig

    shares = TrainingConfig(max_steps=steps, eval_steps=1 / count).evaluation_steps()
    numbers = TrainingConfig(max_steps=steps, eval_steps=float(every)).evaluation_steps()
    for due in (shares, numbers):
        assert max(due) == steps
        assert min(due) >= 1
    assert len(shares) <= min(steps, count)
    assert len(numbers) == -(-steps // every)
    assert TrainingConfig(max_steps=steps, eval_steps=0.0).evaluation_steps() == {steps}
