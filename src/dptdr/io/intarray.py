"""Growing arrays of 64-bit integers, 8 bytes an entry."""

from array import array
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from jaxtyping import Int64

if TYPE_CHECKING:
    IntArray: TypeAlias = array[int]
else:
    # Python 3.11 cannot subscript it at run time.
    IntArray = array


def int_array() -> IntArray:
    """Return an empty array of 64-bit integers."""
    return array("q")


def as_numbers(values: IntArray) -> Int64[np.ndarray, " entries"]:
    """Return the entries as numpy's integers, without a copy.

    Args:
        values: An array made by :func:`int_array`; it must not grow as long as the result is used.
    """
    return np.frombuffer(values, dtype=np.int64) if values else np.zeros(0, dtype=np.int64)
