import pytest

from dptdr.serving.rates import RateLimited, Rates


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_take_a_burst_then_the_rate():
    clock = Clock()
    rates = Rates(3, clock=clock)
    for _ in range(3):
        rates.take("a", per_second=2.0, what="the key 'a'")

    with pytest.raises(RateLimited, match="the key 'a' may send 2 requests per second") as caught:
        rates.take("a", per_second=2.0, what="the key 'a'")
    assert caught.value.retry_after_seconds == pytest.approx(0.5)

    clock.now = 0.5
    rates.take("a", per_second=2.0, what="a")
    rates.take("b", per_second=2.0, what="b")
    with pytest.raises(RateLimited):
        rates.take("a", per_second=2.0, what="a")


def test_take_a_rest_never_saves_up_more_than_the_burst():
    clock = Clock()
    rates = Rates(2, clock=clock)
    clock.now = 1000.0
    rates.take("a", per_second=1.0, what="a")
    rates.take("a", per_second=1.0, what="a")
    with pytest.raises(RateLimited):
        rates.take("a", per_second=1.0, what="a")


def test_take_no_rate_is_no_limit():
    rates = Rates(1, clock=Clock())
    for _ in range(100):
        rates.take("a", per_second=0.0, what="a")


def test_take_forgets_who_has_not_come_for_long():
    clock = Clock()
    rates = Rates(1, clock=clock)
    for number in range(10_000):
        rates.take(number, per_second=1.0, what="x")
    clock.now = 100.0
    rates.take("new", per_second=1.0, what="x")
    assert len(rates._buckets) == 1
