"""How sources and bounds are written, and what is refused."""

import pytest

from dptdr.errors import ConfigError
from dptdr.mining.false_negatives import reference_score, removal_reason
from dptdr.mining.settings import (
    CleaningSettings,
    SourceSettings,
    check_cleaning,
    check_sources,
    parse_source,
)


def test_parse_source_takes_defaults_and_options():
    assert parse_source("bm25", depth=100, quota=7) == SourceSettings(
        name="bm25", kind="bm25", last_rank=100, quota=7
    )
    text = "run:a,b=c.trec,ranks=10-200,quota=30,sampling=uniform"
    assert parse_source(text, depth=100, quota=7) == SourceSettings(
        name="run:a,b=c",
        kind="run",
        value="a,b=c.trec",
        first_rank=10,
        last_rank=200,
        quota=30,
        sampling="uniform",
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("task:out/task-1", "task:task-1"),
        ("task:out/task-1,name=mine", "mine"),
        ("backbone:minilm", "backbone:minilm"),
    ],
)
def test_parse_source_names_what_goes_into_the_output_without_folders(text, name):
    assert parse_source(text, depth=1, quota=1).name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "bm52",
            "source 'bm52': expected bm25, bm25:LANGUAGE, backbone:NAME, task:FOLDER or run:FILE",
        ),
        ("task:", "expected bm25, bm25:LANGUAGE, backbone:NAME"),
        ("bm25,ranks=0-5", "expected ranks as FIRST-LAST counted from 1, .* found '0-5'"),
        ("bm25,ranks=9-5", "found '9-5'"),
        ("bm25,ranks=9", "found '9'"),
        ("bm25,quota=0", "expected a quota of at least 1, found '0'"),
        ("bm25,quota=many", "found 'many'"),
        ("bm25,sampling=best", "expected sampling top, uniform or score"),
        ("bm25,quota=1,quota=2", "quota stands twice"),
        ("bm25,name=", "expected a name, found nothing"),
    ],
)
def test_parse_source_says_what_is_wrong(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_source(text, depth=10, quota=10)


def test_check_sources_refuses_none_and_equal_names():
    with pytest.raises(ConfigError, match="at least one --source"):
        check_sources([])
    twice = [parse_source("bm25", depth=1, quota=1)] * 2
    with pytest.raises(ConfigError, match="two sources are called 'bm25'"):
        check_sources(twice)


@pytest.mark.parametrize("percent", [0.0, -1.0, 101.0, float("nan")])
def test_check_cleaning_refuses_percentages_out_of_range(percent):
    with pytest.raises(ConfigError, match="from 0 to 100"):
        check_cleaning(CleaningSettings(percent=percent))


@pytest.mark.parametrize(
    ("bounds", "score", "reason"),
    [
        ({"drop_above": 0.5}, 0.5, "above"),
        ({"drop_above": 0.5}, 0.49, None),
        ({"margin": 0.25}, 0.5, None),
        ({"margin": 0.25}, 0.51, "margin"),
        ({"percent": 80.0}, 0.6, None),
        ({"percent": 80.0}, 0.61, "percent"),
        ({"drop_above": 0.7, "margin": 0.25}, 0.6, "margin"),
        ({}, 9.0, None),
    ],
)
def test_removal_reason_at_and_beside_the_bounds(bounds, score, reason):
    settings = CleaningSettings(**bounds)
    assert removal_reason(score, positive=0.75, settings=settings) == reason


def test_a_percentage_of_a_score_that_is_not_above_0_bounds_nothing():
    settings = CleaningSettings(percent=95.0)
    assert removal_reason(5.0, positive=-1.0, settings=settings) is None
    assert removal_reason(5.0, positive=0.0, settings=settings) is None


def test_reference_score_of_several_positives():
    scores = [0.25, 0.5, 0.75]
    found = [reference_score(scores, which=which) for which in ("min", "mean", "max")]
    assert found == [0.25, 0.5, 0.75]
