"""Growable arrays of 64-bit integers, with 8 bytes per entry."""

from array import array
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from jaxtyping import Int64

if TYPE_CHECKING:
    IntArray: TypeAlias = array[int]
else:
    # Python 3.11 does not support subscripting at run time.
    IntArray = array


def int_array() -> IntArray:
    """Create an empty array of 64-bit integers."""
    return array("q")


def as_numbers(values: IntArray) -> Int64[np.ndarray, " entries"]:
    """View an :func:`int_array` as a NumPy array; it must not grow while the view is in use."""
    return np.frombuffer(values, dtype=np.int64) if values else np.zeros(0, dtype=np.int64)
