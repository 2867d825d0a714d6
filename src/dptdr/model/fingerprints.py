"""Fingerprints of weights and settings."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def hash_tensors(tensors: Mapping[str, Tensor], *, dtype: torch.dtype | None = None) -> str:
    """Compute the SHA-256 of tensor names, dtypes, shapes and bytes, in name order.

    Args:
        dtype: Hash the tensors in this dtype, converting one at a time; their own by default.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to(device="cpu", dtype=dtype).contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_settings(settings: Any) -> str:
    """Compute the SHA-256 of a JSON value, ignoring key order."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def combine(*parts: str) -> str:
    """Combine fingerprints into one; order matters."""
    return hashlib.sha256("|".join(parts).encode()).hexdigest()
