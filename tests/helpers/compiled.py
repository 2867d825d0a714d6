"""Compile tiny encoders and print how far their vectors are from uncompiled ones, as JSON.

A program of its own: shape checks on every function call, as the tests have them, cannot be traced
into a graph.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch._dynamo.testing

sys.path.insert(0, str(Path(__file__).parent.parent))

from dptdr.model import Injection
from helpers.prompts import lengths_visible, random_attention, states
from helpers.tiny import tiny_model, token_batch


def compare(architecture: str) -> dict[str, Any]:
    """One graph for two calls with different prompts of one shape."""
    injection = Injection(tiny_model(architecture).requires_grad_(requires_grad=False))
    ids, mask = token_batch((9, 4, 12), padding=injection.model.config.pad_token_id or 0)
    visible = lengths_visible((5, 1, 3), longest=5)
    calls = []
    for seed in (1, 3):
        calls.append(
            random_attention(injection.geometry, seed=seed, prompt=5, texts=3, visible=visible)
        )
    expected = [states(injection, ids, mask, rows) for rows in calls]
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounter()
    injection.compile(fullgraph=True, backend=counter)
    got = [states(injection, ids, mask, rows) for rows in calls]
    return {
        "difference": max(
            float((a - b)[mask > 0].abs().max()) for a, b in zip(got, expected, strict=True)
        ),
        "between_prompts": float((got[0] - got[1]).abs().max()),
        "graphs": counter.frame_count,
    }


def many_sizes() -> dict[str, Any]:
    """Batches and prompts of many sizes through one compiled model."""
    injection = Injection(tiny_model().requires_grad_(requires_grad=False))
    plain = Injection(tiny_model().requires_grad_(requires_grad=False))
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounter()
    injection.compile(fullgraph=True, backend=counter)
    difference = 0.0
    for number, prompt in enumerate((3, 5, 8, 16, 2, 7)):
        lengths = tuple(range(3, 6 + number))
        ids, mask = token_batch(lengths)
        segment = random_attention(injection.geometry, prompt=prompt, texts=len(lengths))
        apart = states(injection, ids, mask, segment) - states(plain, ids, mask, segment)
        difference = max(difference, float(apart[mask > 0].abs().max()))
    return {"difference": difference, "graphs": counter.frame_count}


if __name__ == "__main__":
    found = {name: compare(name) for name in sys.argv[1:]}
    print(json.dumps(found | {"many sizes": many_sizes()}))
