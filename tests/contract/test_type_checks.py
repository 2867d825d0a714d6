"""The tests check types and shapes at each call of the package; this checks that they do."""

import dataclasses

import jaxtyping
import numpy as np
import pytest
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float

from helpers.checks import shapes_where_named

Rows = Float[np.ndarray, "rows dim"]


def hooked(given):
    """What the import hook does to functions and classes of the package."""
    return shapes_where_named(given, typechecker=pytest.importorskip("beartype").beartype)


def test_the_package_is_checked():
    from dptdr.io.atomic import sha256_file

    with pytest.raises(BeartypeCallHintViolation, match="sha256_file"):
        sha256_file(3)


def test_arguments_and_returned_values_without_shapes_are_checked():
    @hooked
    def half(number: "int", *more: int) -> str:
        return number // 2 if more else str(number // 2)

    assert half(4) == "2"
    for wrong in (("4",), (4, "4"), (4, 4)):
        with pytest.raises(BeartypeCallHintViolation):
            half(*wrong)
    assert half.__annotations__["number"] == "int"


def test_a_class_whose_fields_are_checked_when_it_is_made():
    @hooked
    @dataclasses.dataclass
    class Pair:
        left: int
        right: "Pair | None" = None

    assert Pair(1, Pair(2)).left == 1
    with pytest.raises(BeartypeCallHintViolation):
        Pair("1")


@pytest.mark.parametrize("shaped", [Rows, "Rows", Rows | None, tuple[Rows, int] | Rows])
def test_sizes_in_shapes_agree_over_a_call(shaped):
    @hooked
    def moved(rows: shaped, by: Rows) -> Rows:
        return rows[:1] if by.any() else rows

    two = np.zeros((2, 3))
    assert moved(two, two) is two
    for wrong in ((two, np.zeros((2, 4))), (two, np.ones((2, 3))), (two, [[0.0]])):
        with pytest.raises(jaxtyping.TypeCheckError):
            moved(*wrong)
