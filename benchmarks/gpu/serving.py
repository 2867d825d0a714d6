"""Serving on a GPU: prompts of many tasks in one fused attention call, against padded batches.

    python benchmarks/gpu/serving.py          # needs a GPU; adds to results/serving.jsonl
    python benchmarks/gpu/serving.py --try    # tiny shapes on the processor; checks, writes nothing

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
from typing import Any

import _encoders
import torch
from _encoders import Shape
from flex import FlexForward

import _lib
from dptdr.model.backbone import Backbone
from dptdr.model.encoder import length_sorted_batches
from dptdr.model.pooling import Pooling
from dptdr.serving.forward import BatchRow, Forward

BARE = "padded, no prompt"
TINY = Shape("bert", 2, 64, 4, 128, 100)
# Most tokens of a batch, and how many texts are encoded.
LOADS = {"BERT-base": (16384, 2048), "RoBERTa-large": (16384, 1024), "tiny": (256, 24)}


def operations(shape: Shape, lengths: list[int], *, prompt: int) -> float:
    """Return the floating-point operations that texts need, embeddings not counted."""
    per_token = 2 * shape.layers * (4 * shape.dim**2 + 2 * shape.dim * shape.inner)
    seen = 4 * shape.layers * shape.dim
    return float(sum(n * (per_token + seen * (n + prompt)) for n in lengths))


def build(shape: Shape, *, device: str, dtype: torch.dtype) -> Backbone:
    # Texts come as token ids; of a tokenizer only the padding is asked.
    made: Backbone = _encoders.random_encoder(
        shape,
        tokenizer=types.SimpleNamespace(pad_token_id=0),
        pooling=Pooling(normalise=True, max_tokens=512),
        max_position_embeddings=514,
    )
    made.model.to(device, dtype)
    return made


def made_texts(shape: Shape, *, texts: int, longest: int) -> list[list[int]]:
    """Return texts of token ids: half of them short, a few as long as may be."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.empty(texts).log_normal_(4.0, 0.9, generator=generator)
    return [
        torch.randint(5, shape.vocabulary, (length,), generator=generator).tolist()
        for length in lengths.long().clamp(4, longest).tolist()
    ]


def batches(rows: list[BatchRow], *, budget: int, padded: bool) -> list[list[BatchRow]]:
    """Return batches of neighbours in length within the token budget."""
    order = list(
        length_sorted_batches(
            [len(row.ids) for row in rows],
            token_budget=budget,
            max_texts=len(rows),
            max_padding=10**9,
        )
    )
    if padded:
        return [[rows[i] for i in batch] for batch in order]
    made: list[list[BatchRow]] = [[]]
    for i in (i for batch in order for i in batch):
        if sum(len(row.ids) for row in made[-1]) + len(rows[i].ids) > budget:
            made.append([])
        made[-1].append(rows[i])
    return made


def measure(name: str, *, device: str, rounds: int, limit: float) -> dict[str, Any]:
    """Measure one shape: padded and fused, without and with prompts, of one task and of many."""
    shape, (budget, count) = _encoders.SHAPES.get(name, TINY), LOADS[name]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    padded = Forward(build(shape, device=device, dtype=dtype), layout="padded", ordered=False)
    fused = FlexForward(build(shape, device=device, dtype=dtype))
    texts = made_texts(shape, texts=count, longest=min(512, budget))
    lengths = [len(ids) for ids in texts]
    systems: dict[str, Callable[[], Any]] = {}
    rows_of: dict[str, int] = {}
    worst = 1.0
    plans = [(0, 1), (32, 1), (128, 1), (32, 10), (32, 100), (32, 1000)]
    for prompt, tasks in plans:
        own: list[Any] = [None]
        if prompt:
            own = _lib.random_prompts(fused.backbone, tasks, prompt=prompt, seed=prompt)
        rows = [BatchRow(ids, own[n % len(own)]) for n, ids in enumerate(texts)]
        what = f"{prompt} rows, {tasks} task{'s' * (tasks > 1)}" if prompt else "no prompt"
        for layout, forward in (("padded", padded), ("fused", fused)):
            if layout == "padded" and tasks > 100:
                continue
            cut = batches(rows, budget=budget, padded=layout == "padded")
            systems[f"{layout}, {what}"] = lambda f=forward, c=cut: timed(f, c, device=device)
            rows_of[f"{layout}, {what}"] = prompt
        chosen = rows[:: max(1, len(rows) // 16)]
        alone = torch.stack([padded.single(row) for row in chosen])
        cosines = torch.nn.functional.cosine_similarity(alone, fused.vectors(chosen))
        worst = min(worst, float(cosines.min()))
    times = _lib.take_turns(systems, rounds=rounds)
    found = []
    for system, prompt in rows_of.items():
        seconds = statistics.median(times[system]["wall"])
        share = operations(shape, lengths, prompt=prompt) / seconds / (1e12 * limit)
        over = _lib.ratio_text(_lib.ratio(times, system, BARE, "wall"))
        found.append([system, over, round(len(texts) / seconds), f"{100 * share:.1f} %"])
    return {"texts": len(texts), "tokens": sum(lengths), "least cosine": worst, "rows": found}


def timed(forward: Forward, cut: list[list[BatchRow]], *, device: str) -> dict[str, float]:
    """Encode all batches; return the seconds until the card is done."""
    began, cpu = _encoders.now(device), time.process_time()
    for batch in cut:
        forward.vectors(batch)
    return {"wall": _encoders.now(device) - began, "cpu": time.process_time() - cpu}


def main() -> None:
    """Measure both shapes on a GPU, or try everything in small on the processor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--try", dest="small", action="store_true", help="tiny, on the processor")
    _lib.add_options(parser, rounds=7, out=_lib.RESULTS / "serving.jsonl")
    options = parser.parse_args()
    if options.small:
        torch.set_num_threads(1)
        limit = _encoders.product_limit("cpu", size=256)
        found = measure("tiny", device="cpu", rounds=1, limit=limit)
        print(json.dumps(found, indent=1))
        sys.exit(0 if found["least cosine"] > 1 - 1e-6 else 1)
    if not torch.cuda.is_available():
        sys.exit("no GPU here: run with --try to check everything but speed on the processor")
    limit = _encoders.product_limit("cuda", size=8192)
    record = {
        "part": "gpu",
        "command": "python benchmarks/gpu/serving.py",
        "commit": _lib.commit(),
        "machine": torch.cuda.get_device_name(),
        "card": torch.cuda.get_device_name(),
        "rounds": options.rounds,
        "seed": 0,
        "limit, TFLOP/s": round(limit, 1),
        "shapes": {
            name: measure(name, device="cuda", rounds=options.rounds, limit=limit)
            for name in _encoders.SHAPES
        },
    }
    _lib.put_records(options.out, [record], ("part",))
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
