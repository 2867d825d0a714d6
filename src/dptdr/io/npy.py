"""Memory-map ``.npy`` files, which may be damaged."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from dptdr.errors import DataError


def refuse_link(path: Path) -> None:
    """Reject a symbolic link inside a folder."""
    if path.is_symlink():
        raise DataError("expected a regular file or folder, got a symbolic link", path=path)


def map_array(path: Path, *, dtype: DTypeLike | None = None) -> np.ndarray:
    """Memory-map an array, checking its size against the file size.

    Args:
        dtype: Expected dtype of a 1-D array; None for any array.

    Raises:
        DataError: If the file is a link, cannot be read, or contains a different kind of array.
    """
    refuse_link(path)
    try:
        mapped: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:
        # NumPy raises many types of errors for a damaged header.
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"cannot read the array ({reason}); recreate the file", path=path) from None
    if dtype is not None and (mapped.dtype != dtype or mapped.ndim != 1):
        raise DataError(
            f"expected a 1-D array of {np.dtype(dtype)}, got shape {mapped.shape} of "
            f"{mapped.dtype}; recreate the file",
            path=path,
        )
    # Return a plain view, because memmap objects are slower than arrays.
    array: np.ndarray[Any, Any] = np.asarray(mapped)
    return array
