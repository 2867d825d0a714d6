"""Arguments of public functions are checked against their annotations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from dptdr.config.arguments import check_counts, checked, fits
from dptdr.errors import ConfigError


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
    assert search("a", where=object(), other=object()) == 10


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
