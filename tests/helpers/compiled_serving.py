"""Serve mixed batches of many sizes through a compiled tiny encoder; print what came out as JSON.

A program of its own: shape checks on every function call, as the tests have them, cannot be traced
into a graph.
"""

import json
import sys
from pathlib import Path

import torch
import torch._dynamo.testing

sys.path.insert(0, str(Path(__file__).parent.parent))

from dptdr.serving.engine.compiled import CompiledForward
from dptdr.serving.engine.forward import Forward, Row
from helpers.serving import random_rows
from helpers.tiny import tiny_backbone


def main() -> None:
    """Compare with each row alone, in an encoder of its own that was never compiled."""
    counter = torch._dynamo.testing.CompileCounter()
    forward = CompiledForward(tiny_backbone("bert"), compiler=counter)
    at_start = counter.frame_count
    plain = Forward(tiny_backbone("bert"), layout="padded", ordered=False)
    prompts = [
        None,
        random_rows(plain.backbone, 3, seed=1),
        random_rows(plain.backbone, 6, seed=2, joint=False),
        random_rows(plain.backbone, 1, seed=3),
        random_rows(plain.backbone, 5, seed=4)._replace(shift=2),
    ]
    generator = torch.Generator().manual_seed(1)
    rows = [
        Row(torch.randint(5, 90, (length,), generator=generator).tolist(), prompts[n % 5])
        for n, length in enumerate((5, 9, 5, 5, 2, 30, 3, 17, 12, 4))
    ]
    alone = torch.stack([plain.single(row) for row in rows])
    difference = 0.0
    for places in (range(10), [0], [1], [2], [0, 5], [0, 1, 3], range(4, 10), [4], [9, 9, 0, 1, 6]):
        made = forward.vectors([rows[i] for i in places])
        difference = max(difference, float((made - alone[list(places)]).abs().max()))
    print(
        json.dumps({"difference": difference, "at_start": at_start, "in_all": counter.frame_count})
    )


main()
