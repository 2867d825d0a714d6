"""Memory-mapped ``.npy`` files that may be damaged."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from dptdr.errors import DataError


def refuse_link(path: Path) -> None:
    """Refuse a symbolic link inside a folder."""
    if path.is_symlink():
        raise DataError("expected a file or folder of its own, got a symbolic link", path=path)


def map_array(path: Path, *, dtype: DTypeLike | None = None) -> np.ndarray:
    """Map an array; its size is checked against the file's.

    Args:
        dtype: Type of a flat array that is expected; None for any array.

    Raises:
        DataError: If the file is a link, cannot be read, or holds another array.
    """
    refuse_link(path)
    try:
        mapped: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:
        # A damaged header makes NumPy raise errors of many types.
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"cannot be read ({reason}); make it again", path=path) from None
    if dtype is not None and (mapped.dtype != dtype or mapped.ndim != 1):
        raise DataError(
            f"expected a flat array of {np.dtype(dtype)}, got the shape {mapped.shape} of "
            f"{mapped.dtype}; make it again",
            path=path,
        )
    # A plain view: every step of a memmap object costs more than that of an array.
    array: np.ndarray[Any, Any] = np.asarray(mapped)
    return array
