import numpy as np
import pytest

from dptdr.training import sampling


def test_batches_of_a_run_can_be_asked_for_in_any_order():
    def asked(step):
        return sampling.batch_items(items=10, batch_size=4, step=step, seed=1)

    forward = [asked(step) for step in range(30)]
    backward = [asked(step) for step in reversed(range(30))]
    assert forward == backward[::-1]


def test_a_batch_larger_than_the_data_visits_items_of_several_epochs():
    pairs = sampling.batch_items(items=3, batch_size=8, step=0, seed=0)
    assert [epoch for epoch, _ in pairs] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert sorted(item for epoch, item in pairs if epoch == 1) == [0, 1, 2]


def test_order_differs_between_epochs_and_seeds():
    first = sampling.epoch_order(items=50, epoch=0, seed=0)
    assert not np.array_equal(first, sampling.epoch_order(items=50, epoch=1, seed=0))
    assert not np.array_equal(first, sampling.epoch_order(items=50, epoch=0, seed=1))


def test_no_items_is_refused():
    with pytest.raises(ValueError, match="expected at least one training group"):
        sampling.batch_items(items=0, batch_size=2, step=0, seed=0)


def test_fewer_negatives_than_asked_for_are_all_taken_once():
    drawn = sampling.draw_negatives(3, wanted=8, seed=0, epoch=0, item=0)
    assert drawn == [0, 1, 2]
    assert sampling.draw_negatives(0, wanted=8, seed=0, epoch=0, item=0) == []
    assert sampling.draw_negatives(5, wanted=0, seed=0, epoch=0, item=0) == []


def test_first_positive_does_not_depend_on_how_many_are_drawn():
    for item in range(20):
        place = {"seed": 2, "epoch": 1, "item": item}
        one = sampling.draw_positives(6, **place)
        three = sampling.draw_positives(6, wanted=3, **place)
        assert three[0] == one[0]
        assert len(set(three)) == 3
    assert sorted(sampling.draw_positives(2, wanted=9, seed=0, epoch=0, item=0)) == [0, 1]


def test_all_negatives_are_drawn_over_the_epochs():
    seen = {
        place
        for epoch in range(40)
        for place in sampling.draw_negatives(6, wanted=2, seed=0, epoch=epoch, item=3)
    }
    assert seen == set(range(6))
