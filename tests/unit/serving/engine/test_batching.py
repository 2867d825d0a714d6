import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dptdr.serving.engine.batching import BatchLimits, BatchQueue, QueueFull, Waiting


def text(tokens, *, request=0, arrived=0.0, deadline=1e9, request_tokens=None, payload=None):
    return Waiting(
        tokens=tokens,
        request=request,
        arrived=arrived,
        deadline=deadline,
        request_tokens=tokens if request_tokens is None else request_tokens,
        payload=payload,
    )


TEXTS = st.lists(
    st.builds(
        text,
        st.integers(1, 60),
        request=st.integers(0, 5),
        arrived=st.floats(0, 10),
        deadline=st.floats(0, 30),
        request_tokens=st.integers(1, 5000),
        payload=st.uuids(),
    ),
    max_size=60,
)
COSTS = st.sampled_from(["packed", "padded"])


def drain(queue, *, now):
    batches, expired = [], []
    while len(queue):
        taken = queue.take(now)
        assert taken.batch or taken.expired
        batches.append(taken.batch)
        expired += taken.expired
    return batches, expired


@given(TEXTS, COSTS, st.integers(1, 120), st.integers(1, 12), st.floats(0, 30))
def test_take_every_text_leaves_once_within_the_limits(texts, cost, tokens, most, now):
    limits = BatchLimits(batch_tokens=tokens, batch_texts=most, queue_tokens=10**9, cost=cost)
    queue = BatchQueue(limits)
    for one in texts:
        queue.put([one])

    batches, expired = drain(queue, now=now)

    computed = [one for batch in batches for one in batch]
    assert sorted(x.payload for x in [*computed, *expired]) == sorted(x.payload for x in texts)
    assert all(one.deadline < now for one in expired)
    assert all(one.deadline >= now for one in computed)
    for batch in batches:
        assert len(batch) <= most
        lengths = [one.tokens for one in batch]
        paid = sum(lengths) if cost == "packed" else len(lengths) * max(lengths, default=0)
        assert paid <= tokens or len(batch) == 1
    assert queue.tokens == 0


@given(TEXTS.filter(bool), COSTS, st.integers(1, 120))
def test_take_the_most_urgent_text_is_in_the_next_batch(texts, cost, tokens):
    speed = 100.0
    queue = BatchQueue(BatchLimits(batch_tokens=tokens, cost=cost, tokens_per_second=speed))
    for one in texts:
        queue.put([one])

    first = min(texts, key=lambda x: min(x.arrived + x.request_tokens / speed, x.deadline))

    due = min(first.arrived + first.request_tokens / speed, first.deadline)
    batch = queue.take(-1.0).batch
    assert any(min(x.arrived + x.request_tokens / speed, x.deadline) == due for x in batch)


@given(TEXTS, st.integers(0, 5))
def test_cancel_drops_all_of_one_request_and_nothing_else(texts, request_number):
    queue = BatchQueue(BatchLimits(queue_tokens=10**9))
    for one in texts:
        queue.put([one])

    dropped = queue.cancel(request_number)

    assert {x.payload for x in dropped} == {x.payload for x in texts if x.request == request_number}
    batches, _ = drain(queue, now=-1.0)
    left = {x.payload for batch in batches for x in batch}
    assert left == {x.payload for x in texts if x.request != request_number}
    assert queue.cancel(request_number) == []


@given(TEXTS.filter(bool), st.integers(1, 200))
def test_put_a_request_is_taken_whole_or_not_at_all(texts, room):
    queue = BatchQueue(BatchLimits(queue_tokens=room, tokens_per_second=10.0))
    taken = 0
    for one in texts:
        pair = [one, one]
        before = queue.tokens
        refused = None
        try:
            queue.put(pair)
        except QueueFull as error:
            refused = error
        if refused is None:
            taken += 2
            continue
        assert before + 2 * one.tokens > room
        assert refused.retry_after_seconds >= 1.0
        assert queue.tokens == before
    assert len(queue) == taken
    assert taken >= 2


def test_take_a_search_overtakes_a_bulk_request_but_not_for_ever():
    limits = BatchLimits(batch_tokens=100, tokens_per_second=1000.0)
    queue = BatchQueue(limits)
    queue.put([text(100, request="bulk", request_tokens=4000) for _ in range(40)])
    queue.put([text(8, request="search", arrived=3.0)])
    queue.put([text(8, request="late", arrived=4.5)])

    first, second, third = (queue.take(5.0).batch for _ in range(3))

    assert [x.request for x in first] == ["search", "late"] or first[0].request == "search"
    assert second[0].request == "bulk"
    assert third[0].request in ("bulk", "late")


def test_take_neighbours_in_length_share_a_batch():
    queue = BatchQueue(BatchLimits(batch_tokens=1000, batch_texts=3, cost="padded"))
    for tokens in (50, 3, 51, 4, 52, 5):
        queue.put([text(tokens, payload=tokens)])

    batches, _ = drain(queue, now=0.0)

    assert [sorted(x.payload for x in batch) for batch in batches] == [[3, 4, 5], [50, 51, 52]]


def test_queue_full_says_what_waits_and_what_came():
    queue = BatchQueue(BatchLimits(queue_tokens=10, tokens_per_second=1.0))
    queue.put([text(8)])

    with pytest.raises(QueueFull, match=r"room for 10 tokens and about 8 are waiting, got 5 more"):
        queue.put([text(5)])


def test_module_needs_no_torch():
    code = "import sys, dptdr.serving.engine.batching; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
