"""Encoders of random weights, and what a card can do: shared by the benchmarks for GPUs."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

# The benchmarks share benchmarks/_lib.py.
sys.path.append(str(Path(__file__).parents[1]))


class Shape(NamedTuple):
    """Sizes of an encoder; its kind is ``bert`` or ``roberta``."""

    kind: str
    layers: int
    dim: int
    heads: int
    inner: int
    vocabulary: int


SHAPES = {
    "BERT-base": Shape("bert", 12, 768, 12, 3072, 30522),
    "RoBERTa-large": Shape("roberta", 24, 1024, 16, 4096, 50265),
}


def random_encoder(shape: Shape, *, tokenizer: Any, pooling: Any, **more: Any) -> Any:
    """Return a backbone of random weights; ``more`` goes to the model's config."""
    import transformers

    from dptdr.model import Backbone

    config, model = {
        "bert": (transformers.BertConfig, transformers.BertModel),
        "roberta": (transformers.RobertaConfig, transformers.RobertaModel),
    }[shape.kind]
    sizes = config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.dim,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.inner,
        pad_token_id=0,
        **more,
    )
    torch.manual_seed(0)
    made = model(sizes, add_pooling_layer=False)
    return Backbone(made, tokenizer, name=shape.kind, pooling=pooling)


def now(device: str) -> float:
    """Return the time in seconds, once the card is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def best_time(run: Callable[[], object], *, device: str, turns: int = 10) -> float:
    """Return the seconds of the fastest of some runs, after three."""
    times = []
    for _ in range(turns + 3):
        began = now(device)
        run()
        times.append(now(device) - began)
    return min(times[3:])


def product_limit(device: str, *, size: int) -> float:
    """Return the TFLOP/s of one large product of matrices in bfloat16."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / best_time(lambda: a @ b, device=device) / 1e12
