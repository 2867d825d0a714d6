"""Arguments of public functions are checked against their annotations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from dptdr.config.arguments import check_counts, check_unicode, checked, fits
from dptdr.errors import ConfigError
from dptdr.records import Hit


@pytest.mark.parametrize(
    ("value", "annotation", "fitting"),
    [
        (3, int, True),
        (3.0, int, False),
        (True, int, False),
        (3, float, True),
        ("3", float, False),
        (True, bool, True),
        (1, bool, False),
        ("a", Path | str | None, True),
        (None, Path | str | None, True),
        (3, Path | str | None, False),
        ("x", Literal["msmarco", "nq"] | None, False),
        ((0, 1), tuple[int, int], True),
        ((0,), tuple[int, int], False),
        (5, tuple[int, int], False),
        (["a"], Sequence[str], True),
        ("a", Sequence[str], False),
        ([1], Sequence[str], False),
        ({"lang": "en"}, Mapping[str, str | Sequence[str]], True),
        ({"lang": 1}, Mapping[str, str | Sequence[str]], False),
        ({"lang": ["en", 1]}, Mapping[str, str | Sequence[str]], False),
        (np.zeros(2), Literal["msmarco", "nq"] | None, False),
        (True, Literal[1], False),
        ({"q": [Hit("p", 1.0)]}, dict[str, list[Hit]], True),
        ({"q": [("p", 1.0)]}, dict[str, list[Hit]], False),
        ({"a": 1}, dict[str, list[Hit]], False),
        (object(), Any, True),
    ],
)
def test_values_fit_annotations(value, annotation, fitting):
    assert fits(value, annotation) is fitting


def test_a_wrong_argument_is_one_error_that_names_it():
    @checked
    def search(text: str, *, k: int = 10, where: "Elsewhere | None" = None, **rest: int):
        return k

    with pytest.raises(ConfigError, match=r"^k: expected a whole number, got '3'$"):
        search("a", k="3")
    with pytest.raises(ConfigError, match=r"^text: expected a string, got None$"):
        search(None)
    assert search("a") == 10
    assert type(search("a", k=np.int64(3))) is int
    # What the annotation cannot tell is left to the function.
    assert search("a", other=object()) == 10
    # A class imported for type checking alone is known by its name.
    assert search("a", where=type("Below", (type("Elsewhere", (), {}),), {})()) == 10
    with pytest.raises(ConfigError, match=r"^where: expected Elsewhere or None, got 5$"):
        search("a", where=5)


@pytest.mark.parametrize("path", ["a\0b", "x/" + "y" * 256, "\ud800", "z/" * 3000])
def test_a_path_that_cannot_be_is_named(path):
    @checked
    def read(
        place: Path | str | None = None,
        data: Path | str | Sequence[Any] = (),
        parts: Sequence[Path | str] = (),
    ):
        return place

    for wrong in ({"place": path}, {"data": path}, {"place": Path(path)}, {"parts": ["a", path]}):
        with pytest.raises(ConfigError, match=r"^(place|data|parts): expected (a path|names)"):
            read(**wrong)
    assert read("é" * 127) == "é" * 127


def test_text_that_is_not_unicode_is_named():
    check_unicode(["é", "\U0001f600"])
    with pytest.raises(ConfigError, match=r"^text 2 of 2, .* got '\\udce9' at character 4"):
        check_unicode(["café", "caf\udce9 red"])


@pytest.mark.parametrize("count", [0, -1, True, 1.5])
def test_counts_are_whole_numbers_from_one(count):
    # The check of types in the tests would see the wrong ones first.
    check = getattr(check_counts, "__wrapped__", check_counts)
    with pytest.raises(ConfigError, match="limit: expected a whole number of at least 1"):
        check(limit=count)


def test_numbers_beyond_what_any_machine_can_use_are_refused():
    @checked
    def sampled(*, seed: int = 0):
        return seed

    for wrong in (-1, 10**20):
        with pytest.raises(ConfigError, match="seed: expected a number from 0 to"):
            sampled(seed=wrong)
    assert sampled(seed=2**32 - 1) == 2**32 - 1
    with pytest.raises(ConfigError, match="threads: expected at most"):
        check_counts(threads=10**30)
