import pytest

from dptdr.data.sample.assemble import SamplePair, clean_pairs, sample_pairs, split_by_unit
from dptdr.errors import DataError


def pair(
    id: str, *, query: str | None = None, passage: str | None = None, unit: str = "u"
) -> SamplePair:
    return SamplePair(id, query or f"query {id}", passage or f"passage {id}", unit)


def many(count: int, *, units: int) -> list[SamplePair]:
    return [pair(f"p{number}", unit=f"u{number % units}") for number in range(count)]


def test_a_query_with_two_answers_is_dropped_with_both():
    found = clean_pairs([pair("a", query="Same thing."), pair("b", query="same  thing"), pair("c")])

    assert [item.id for item in found] == ["c"]


def test_of_equal_passages_the_first_stays():
    found = clean_pairs([pair("a", passage="x\ny"), pair("b", passage="X y"), pair("c")])

    assert [item.id for item in found] == ["a", "c"]


def test_a_passage_that_quotes_its_query_is_dropped():
    found = clean_pairs([pair("a", query="Add them up.", passage="x: add  them up, y"), pair("b")])

    assert [item.id for item in found] == ["b"]


def test_equal_ids_are_told_apart():
    found = clean_pairs([pair("a", query="q 1", passage="1"), pair("a", query="q 2", passage="2")])

    assert [item.id for item in found] == ["a", "a#2"]


def test_a_sample_keeps_order_and_depends_on_the_seed_alone():
    pairs = many(100, units=5)
    first = sample_pairs(pairs, count=20, seed=1)

    assert first == sample_pairs(pairs, count=20, seed=1)
    assert first != sample_pairs(pairs, count=20, seed=2)
    assert first == sorted(first, key=pairs.index)
    assert len(set(first)) == 20
    assert sample_pairs(pairs, count=100, seed=1) == pairs


def test_splits_are_made_of_whole_units_in_the_right_shares():
    pairs = many(4000, units=200)
    splits = split_by_unit(pairs, seed=3)
    sizes = {name: sum(splits[p.unit] == name for p in pairs) for name in ("train", "dev", "test")}

    assert sizes == {"train": 3200, "dev": 200, "test": 600}
    assert splits == split_by_unit(pairs, seed=3)
    assert splits != split_by_unit(pairs, seed=4)


def test_a_unit_that_would_rule_the_test_split_goes_to_train():
    pairs = many(4000, units=200) + [pair(f"big{n}", unit="big") for n in range(130)]

    assert {split_by_unit(pairs, seed=seed)["big"] for seed in range(20)} == {"train"}


def test_too_few_pairs_are_an_error():
    with pytest.raises(DataError, match=r"documented definitions.*got 1000 and 500"):
        split_by_unit(many(1000, units=200), seed=0)
