"""Serving on a GPU: prompts of many tasks in one fused attention call, against padded batches.

    python benchmarks/gpu_serving.py          # needs a GPU; adds to results/serving.jsonl
    python benchmarks/gpu_serving.py --try    # tiny shapes on the processor; checks, writes nothing

Encoders of the shapes of BERT-base and RoBERTa-large with random weights (speed does not depend on
them), in bfloat16. Lengths are spread as those of real texts. FlexAttention runs compiled on a GPU
and by its reference on a processor, so that ``--try`` checks equality and no speed. The share of
the limit counts floating-point operations of real tokens, divided by what a large matrix product
reaches on the same card.
"""

import argparse
import json
import statistics
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import _lib
from dptdr.model.backbone import Backbone
from dptdr.model.encoder import length_sorted_batches
from dptdr.model.pooling import Pooling
from dptdr.serving.engine.forward import Forward, Row
from dptdr.serving.packing import PromptRows
from flex import FlexForward
from serving_page import of, write_page
from serving_tools import ratio, take_turns

BARE = "padded, no prompt"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """An encoder's shape.

    Args:
        kind: ``bert`` or ``roberta``.
        layers: Layers.
        dim: Width.
        heads: Attention heads.
        inner: Width of the feed-forward layers.
        vocabulary: Different tokens.
        batch_tokens: Most tokens per batch.
        texts: How many texts are encoded.
    """

    kind: str
    layers: int
    dim: int
    heads: int
    inner: int
    vocabulary: int
    batch_tokens: int
    texts: int

    def operations(self, lengths: list[int], *, prompt: int) -> float:
        """Return the floating-point operations that texts need, embeddings not counted."""
        per_token = 2 * self.layers * (4 * self.dim**2 + 2 * self.dim * self.inner)
        seen = 4 * self.layers * self.dim
        return float(sum(n * (per_token + seen * (n + prompt)) for n in lengths))


BERT_BASE = Shape(
    kind="bert",
    layers=12,
    dim=768,
    heads=12,
    inner=3072,
    vocabulary=30522,
    batch_tokens=16384,
    texts=2048,
)
ROBERTA_LARGE = Shape(
    kind="roberta",
    layers=24,
    dim=1024,
    heads=16,
    inner=4096,
    vocabulary=50265,
    batch_tokens=16384,
    texts=1024,
)
TINY = Shape(
    kind="bert",
    layers=2,
    dim=64,
    heads=4,
    inner=128,
    vocabulary=100,
    batch_tokens=256,
    texts=24,
)


def build(shape: Shape, *, device: str, dtype: torch.dtype) -> Backbone:
    """Return an encoder with random weights."""
    import transformers

    torch.manual_seed(0)
    configs = {"bert": transformers.BertConfig, "roberta": transformers.RobertaConfig}
    models = {"bert": transformers.BertModel, "roberta": transformers.RobertaModel}
    config = configs[shape.kind](
        hidden_size=shape.dim,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.inner,
        vocab_size=shape.vocabulary,
        max_position_embeddings=514,
    )
    model = models[shape.kind](config).to(device, dtype)
    # Texts come as token ids; of a tokenizer only the padding is asked.
    tokenizer = types.SimpleNamespace(pad_token_id=config.pad_token_id)
    return Backbone(
        model, tokenizer, name=shape.kind, pooling=Pooling(normalise=True, max_tokens=512)
    )


def made_texts(shape: Shape) -> list[list[int]]:
    """Return texts of token ids: half of them short, a few as long as may be."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.empty(shape.texts).log_normal_(4.0, 0.9, generator=generator)
    longest = min(512, shape.batch_tokens)
    return [
        torch.randint(5, shape.vocabulary, (length,), generator=generator).tolist()
        for length in lengths.long().clamp(4, longest).tolist()
    ]


def made_prompts(backbone: Backbone, count: int, *, prompt: int) -> list[PromptRows]:
    """Return prompts of random rows, as the registry keeps them."""
    geometry = backbone.geometry
    parameter: torch.Tensor = next(backbone.model.parameters())
    generator = torch.Generator().manual_seed(prompt)
    shape = (2, geometry.layers, prompt, geometry.heads, geometry.head_dim)
    return [
        PromptRows(*(0.3 * torch.randn(shape, generator=generator)).to(parameter))
        for _ in range(count)
    ]


def batches(shape: Shape, rows: list[Row], *, padded: bool) -> list[list[Row]]:
    """Return batches of neighbours in length within the token budget."""
    order = list(
        length_sorted_batches(
            [len(row.ids) for row in rows],
            token_budget=shape.batch_tokens,
            most_texts=len(rows),
            most_padding=10**9,
        )
    )
    if padded:
        return [[rows[i] for i in batch] for batch in order]
    made: list[list[Row]] = [[]]
    for i in (i for batch in order for i in batch):
        if sum(len(row.ids) for row in made[-1]) + len(rows[i].ids) > shape.batch_tokens:
            made.append([])
        made[-1].append(rows[i])
    return made


def measure(shape: Shape, *, device: str, rounds: int, limit: float) -> dict[str, Any]:
    """Measure one shape: padded and fused, without and with prompts, of one task and of many."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    padded = Forward(build(shape, device=device, dtype=dtype), layout="padded", ordered=False)
    fused = FlexForward(build(shape, device=device, dtype=dtype))
    texts = made_texts(shape)
    lengths = [len(ids) for ids in texts]
    systems: dict[str, Callable[[], Any]] = {}
    rows_of: dict[str, int] = {}
    worst = 1.0
    plans = [(0, 1), (32, 1), (128, 1), (32, 10), (32, 100), (32, 1000)]
    for prompt, tasks in plans:
        own = made_prompts(fused.backbone, tasks, prompt=prompt) if prompt else [None]
        rows = [Row(ids, own[n % len(own)]) for n, ids in enumerate(texts)]
        what = f"{prompt} rows, {tasks} task{'s' * (tasks > 1)}" if prompt else "no prompt"
        for name, forward in (("padded", padded), ("fused", fused)):
            if name == "padded" and tasks > 100:
                continue
            cut = batches(shape, rows, padded=name == "padded")
            systems[f"{name}, {what}"] = lambda f=forward, c=cut: timed(f, c, device=device)
            rows_of[f"{name}, {what}"] = prompt
        chosen = rows[:: max(1, len(rows) // 16)]
        alone = torch.stack([padded.single(row) for row in chosen])
        cosines = torch.nn.functional.cosine_similarity(alone, fused.vectors(chosen))
        worst = min(worst, float(cosines.min()))
    times = take_turns(systems, rounds=rounds)
    found = []
    for name in systems:
        seconds = statistics.median(times[name]["wall"])
        share = shape.operations(lengths, prompt=rows_of[name]) / seconds / limit
        found.append(
            [
                name,
                of(ratio(times, name, BARE, "wall")),
                round(len(texts) / seconds),
                f"{100 * share:.1f} %",
            ]
        )
    return {"texts": len(texts), "tokens": sum(lengths), "least cosine": worst, "rows": found}


def timed(forward: Forward, cut: list[list[Row]], *, device: str) -> dict[str, float]:
    """Encode all batches; return the seconds until the card is done."""
    began, cpu = time.perf_counter(), time.process_time()
    for batch in cut:
        forward.vectors(batch)
    if device == "cuda":
        torch.cuda.synchronize()
    return {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu}


def best_product(device: str, *, size: int) -> float:
    """Return the operations per second of a large matrix product: what the card can do."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best


def main() -> None:
    """Measure both shapes on a GPU, or try everything in small on the processor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--try", dest="small", action="store_true", help="tiny, on the processor")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=_lib.RESULTS / "serving.jsonl")
    options = parser.parse_args()
    if options.small:
        torch.set_num_threads(1)
        limit = best_product("cpu", size=256)
        found = measure(TINY, device="cpu", rounds=1, limit=limit)
        print(json.dumps(found, indent=1))
        sys.exit(0 if found["least cosine"] > 1 - 1e-6 else 1)
    if not torch.cuda.is_available():
        sys.exit("no GPU here: run with --try to check everything but speed on the processor")
    limit = best_product("cuda", size=8192)
    shapes = {"BERT-base": BERT_BASE, "RoBERTa-large": ROBERTA_LARGE}
    record = {
        "part": "gpu",
        "command": "python benchmarks/gpu_serving.py",
        "commit": _lib.commit(),
        "machine": torch.cuda.get_device_name(),
        "card": torch.cuda.get_device_name(),
        "rounds": options.rounds,
        "seed": 0,
        "limit, TFLOP/s": round(limit / 1e12, 1),
        "shapes": {
            name: measure(shape, device="cuda", rounds=options.rounds, limit=limit)
            for name, shape in shapes.items()
        },
    }
    _lib.put_records(options.out, [record], ("part",))
    write_page(options.out)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
