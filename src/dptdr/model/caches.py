"""Bound kernel caches so that memory stays flat for texts of any length."""

import os

MOST_KERNELS = "64"
_BOUNDS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def bound_kernel_caches() -> None:
    """Limit the kernel caches of oneDNN and PyTorch to 64 entries each, from 1,024.

    Each matrix shape gets its own kernel, and varying text lengths produce thousands of shapes:
    under mixed load, cached kernels grow a process by a gigabyte within minutes. With 64 entries
    memory stays flat and speed is unchanged (``results/kernel-caches.md``). Values set by the user
    win. Must be called before the process's first matrix product on the CPU.
    """
    for name in _BOUNDS:
        os.environ.setdefault(name, MOST_KERNELS)
