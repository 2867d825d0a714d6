"""How sources and bounds are written, and what is refused."""

import pytest

from dptdr.errors import ConfigError
from dptdr.mining.false_negatives import reference_score, removal_reason
from dptdr.mining.settings import (
    FilteringSettings,
    SourceSettings,
    check_filtering,
    check_sources,
    parse_source,
)


def test_parse_source_takes_defaults_and_options():
    assert parse_source("bm25", range_max=100, num_negatives=7) == SourceSettings(
        name="bm25", kind="bm25", range_max=100, num_negatives=7
    )
    expected = SourceSettings(
        name="run:a,b=c",
        kind="run",
        value="a,b=c.trec",
        range_min=10,
        range_max=200,
        num_negatives=30,
        sampling="uniform",
    )
    for options in ("range_min=10,range_max=200,num_negatives=30", "ranks=10-200,quota=30"):
        text = f"run:a,b=c.trec,{options},sampling=uniform"
        assert parse_source(text, range_max=100, num_negatives=7) == expected


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("task:out/task-1", "task:task-1"),
        ("task:out/task-1,name=mine", "mine"),
        ("backbone:minilm", "backbone:minilm"),
    ],
)
def test_parse_source_names_what_goes_into_the_output_without_folders(text, name):
    assert parse_source(text, range_max=1, num_negatives=1).name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "bm52",
            "source 'bm52': expected bm25, bm25:LANGUAGE, backbone:NAME, task:FOLDER or run:FILE",
        ),
        ("task:", "expected bm25, bm25:LANGUAGE, backbone:NAME"),
        ("bm25,ranks=0-5", "expected range_min of at least 1, got '0'"),
        ("bm25,range_min=9,range_max=5", "expected range_min up to 5, got 9"),
        ("bm25,ranks=9", "expected ranks as FIRST-LAST counted from 1, .* got '9'"),
        ("bm25,num_negatives=0", "expected num_negatives of at least 1, got '0'"),
        ("bm25,quota=many", "expected num_negatives of at least 1, got 'many'"),
        ("bm25,sampling=best", "expected sampling top, uniform or score"),
        ("bm25,quota=1,num_negatives=2", "expected num_negatives once, got it twice"),
        ("bm25,name=", "expected a name, got nothing"),
    ],
)
def test_parse_source_says_what_is_wrong(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_source(text, range_max=10, num_negatives=10)


def test_check_sources_refuses_none_and_equal_names():
    with pytest.raises(ConfigError, match="at least one --source"):
        check_sources([])
    twice = [parse_source("bm25", range_max=1, num_negatives=1)] * 2
    with pytest.raises(ConfigError, match="expected unique source names, got 'bm25' twice"):
        check_sources(twice)


@pytest.mark.parametrize("margin", [1.0, -0.1, 95.0])
def test_check_filtering_refuses_margins_out_of_range(margin):
    with pytest.raises(ConfigError, match=r"relative_margin: .* in \[0, 1\), got"):
        check_filtering(FilteringSettings(relative_margin=margin))
    with pytest.raises(ConfigError, match="max_score: expected a number, got nan"):
        check_filtering(FilteringSettings(max_score=float("nan")))


@pytest.mark.parametrize(
    ("bounds", "score", "reason"),
    [
        ({"max_score": 0.5}, 0.5, "max_score"),
        ({"max_score": 0.5}, 0.49, None),
        ({"absolute_margin": 0.25}, 0.5, None),
        ({"absolute_margin": 0.25}, 0.51, "absolute_margin"),
        ({"relative_margin": 0.2}, 0.6, None),
        ({"relative_margin": 0.2}, 0.61, "relative_margin"),
        ({"max_score": 0.7, "absolute_margin": 0.25}, 0.6, "absolute_margin"),
        ({}, 9.0, None),
    ],
)
def test_removal_reason_at_and_beside_the_bounds(bounds, score, reason):
    settings = FilteringSettings(**bounds)
    assert removal_reason(score, positive=0.75, settings=settings) == reason


def test_a_share_of_a_score_that_is_not_above_0_bounds_nothing():
    settings = FilteringSettings(relative_margin=0.05)
    assert removal_reason(5.0, positive=-1.0, settings=settings) is None
    assert removal_reason(5.0, positive=0.0, settings=settings) is None


def test_reference_score_of_several_positives():
    scores = [0.25, 0.5, 0.75]
    found = [reference_score(scores, which=which) for which in ("min", "mean", "max")]
    assert found == [0.25, 0.5, 0.75]
