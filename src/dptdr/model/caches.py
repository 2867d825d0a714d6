"""Bounds for the matrix libraries' caches, so that memory stays flat over texts of any length."""

import os

MOST_KERNELS = "64"
_BOUNDS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def bound_kernel_caches() -> None:
    """Let oneDNN and PyTorch's layer above it keep 64 kernels each instead of 1,024.

    They make a kernel per shape of a matrix product. Lengths of texts give thousands of shapes, and
    the kernels kept for them grow a process by a gigabyte over minutes of mixed load; with 64 it
    stays flat and is as quick (``results/kernel-caches.md``). Values that the user has set stay.
    Without effect where the process has multiplied matrices on the processor before.
    """
    for name in _BOUNDS:
        os.environ.setdefault(name, MOST_KERNELS)
