"""Measure training on one GPU at the sizes of the paper, in one call.

    python benchmarks/gpu/training.py           # results/gpu-training.jsonl and .md
    python benchmarks/gpu/training.py --small   # tiny sizes, on a CPU too; writes nothing

Encoders of BERT-base's and RoBERTa-large's shape from random weights; deep prompts of 32 and 128
rows; 512 queries with 8 passages each of 128 tokens, in-batch negatives, chunks through GradCache,
bfloat16. Time and memory do not depend on what the weights are. Reported are steps per second,
TFLOP/s of the products done (a chunk is encoded twice, and once backwards to its inputs), their
share of what one large product of matrices reaches on the card, peak memory, which fused attention
takes prompts and how fast, and how far gradients are from those of the CPU.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import _encoders
import numpy as np
import torch
from _encoders import Shape, best_time, now

import _lib

RESULTS = _lib.RESULTS / "gpu-training.jsonl"
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-1}
WORDS = 1000


class Load(NamedTuple):
    """Sizes of a step."""

    queries: int
    passages: int
    query_tokens: int
    passage_tokens: int
    chunk: int
    prompts: tuple[int, ...]


SMALL_SHAPES = {
    "BERT-base": Shape("bert", 2, 32, 4, 64, 1100),
    "RoBERTa-large": Shape("roberta", 3, 48, 4, 96, 1100),
}
LOAD = Load(512, 8, 32, 128, 512, (32, 128))
SMALL_LOAD = Load(6, 2, 8, 16, 5, (4, 8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after two")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not arguments.small:
        parser.error("expected a GPU, found none; --small runs on a CPU")
    shapes, load = (SMALL_SHAPES, SMALL_LOAD) if arguments.small else (_encoders.SHAPES, LOAD)
    began = time.monotonic()
    found: dict[str, Any] = {
        "command": "python benchmarks/gpu/training.py",
        "commit": _lib.commit(),
        "machine": f"one {torch.cuda.get_device_name()}" if device == "cuda" else _lib.machine(),
        "limit_tflops": _encoders.product_limit(device, size=256 if arguments.small else 8192),
        "load": load._asdict(),
        "steps": [],
        "gradients": [],
        "attention": [],
    }
    for name, shape in shapes.items():
        for prompt in load.prompts:
            place = {"encoder": name, "prompt": prompt}
            measured = step_figures(
                shape, load, prompt=prompt, device=device, turns=arguments.steps
            )
            found["steps"].append(place | measured)
            found["attention"].append(place | attention_times(shape, load, prompt=prompt))
            torch.cuda.empty_cache()
        found["gradients"].append({"encoder": name} | gradient_differences(shape, device=device))
    found["wall_seconds"] = round(time.monotonic() - began)
    print("\n".join(page(found)))
    if not arguments.small:
        _lib.write_records(RESULTS, [found])
        _lib.write_page(RESULTS.with_suffix(".md"), page(found))


# --- encoders and texts


def made_backbone(shape: Shape, *, device: str) -> Any:
    """Return an encoder of random weights whose tokenizer makes one token of each word."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from dptdr.model import Pooling

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    ids = {word: number for number, word in enumerate([*special, *map(str, range(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=256, pad_token="[PAD]"
    )
    made = _encoders.random_encoder(
        shape,
        tokenizer=fast,
        pooling=Pooling(pool="cls", max_tokens=256),
        max_position_embeddings=300,
    )
    made.model.to(device)
    return made


def made_groups(load: Load) -> list[Any]:
    """Return groups whose texts are exactly as long as asked for."""
    from dptdr.records import TrainingGroup

    generator = np.random.default_rng(0)

    def text(tokens: int) -> str:
        return " ".join(map(str, generator.integers(0, WORDS, size=tokens - 2)))

    return [
        TrainingGroup(
            str(number),
            text(load.query_tokens),
            (text(load.passage_tokens),),
            tuple(text(load.passage_tokens) for _ in range(load.passages - 1)),
        )
        for number in range(load.queries)
    ]


def objective(
    backbone: Any,
    load: Load,
    *,
    prompt: int,
    precision: str,
    chunk: int,
    ffn_length: int | None = None,
) -> Any:
    from dptdr.config.methods import DeepPromptConfig
    from dptdr.config.training import TrainingConfig
    from dptdr.model import MethodFactory
    from dptdr.training.objective import ContrastiveObjective
    from dptdr.training.train import set_training_mode

    settings = DeepPromptConfig(
        prompt_length=prompt, ffn_length=ffn_length, initialisation="random"
    )
    method = MethodFactory().build("deep-prompt", backbone, settings, seed=0)
    set_training_mode(method)
    config = TrainingConfig(
        max_steps=1000,
        batch_size=load.queries,
        negatives_per_query=load.passages - 1,
        max_query_tokens=load.query_tokens,
        max_passage_tokens=load.passage_tokens,
        mini_batch_size=chunk or None,
        precision=precision,  # type: ignore[arg-type]
    )
    return ContrastiveObjective(method, made_groups(load), config, score_scale=1.0 / backbone.dim)


# --- steps


def step_figures(
    shape: Shape, load: Load, *, prompt: int, device: str, turns: int
) -> dict[str, float]:
    """Return seconds per step, what was multiplied in it, and the peak of memory."""
    from dptdr.training.loop import TrainState

    backbone = made_backbone(shape, device=device)
    made = objective(backbone, load, prompt=prompt, precision="bfloat16", chunk=load.chunk)
    trainable = TrainState(made.method.trained(), made.config, rate=1e-3)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for number in range(turns + 2):
        began = now(device)
        trainable.zero_grad()
        made.backward(number)
        trainable.clip()
        trainable.update(number)
        seconds.append(now(device) - began)
    flops = step_flops(shape, load, prompt=prompt)
    median = statistics.median(seconds[2:])
    return {
        "seconds": median,
        "tflops": flops / median / 1e12,
        "tflop_per_step": flops / 1e12,
        "gigabytes": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0,
    }


def step_flops(shape: Shape, load: Load, *, prompt: int) -> float:
    """Return the multiplications and additions of a step's products.

    Each text is encoded once without and once with a graph (the last chunk once only, which is
    left out here), and once backwards, to the inputs of the products alone. Attention's backward
    has five products where its forward has two; one of these recomputes the scores.
    """
    texts = ((load.queries, load.query_tokens), (load.queries * load.passages, load.passage_tokens))
    linear = attention = 0.0
    for count, tokens in texts:
        weights = 4 * shape.dim**2 + 2 * shape.dim * shape.inner
        linear += count * tokens * shape.layers * 2 * weights
        attention += count * tokens * shape.layers * 4 * shape.dim * (tokens + prompt)
    return 3 * linear + (2 + 2.5) * attention


# --- attention


def attention_times(shape: Shape, load: Load, *, prompt: int) -> dict[str, str]:
    """Return milliseconds of one layer, forwards and backwards, for each fused attention."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokens, columns = load.passage_tokens, load.passage_tokens + prompt
    width = shape.dim // shape.heads

    def rows(count: int) -> torch.Tensor:
        made = torch.randn(load.chunk, shape.heads, count, width, device=device)
        return made.bfloat16().requires_grad_()

    query, key, value = rows(tokens), rows(columns), rows(columns)
    padded = torch.ones(load.chunk, 1, tokens, columns, dtype=torch.bool, device=device)
    padded[0, :, :, -3:] = False
    found = {}
    kernels = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "plain": SDPBackend.MATH,
    }
    for name, kernel in kernels.items():
        for kind, mask in (("even", None), ("padded", padded)):

            def run(mask: torch.Tensor | None = mask) -> None:
                output = torch.nn.functional.scaled_dot_product_attention(
                    query, key, value, attn_mask=mask
                )
                torch.autograd.grad(output.float().sum(), (query, key, value))

            try:
                with sdpa_kernel([kernel]):
                    found[f"{name}, {kind}"] = f"{1e3 * best_time(run, device=device):.2f}"
            except RuntimeError:
                found[f"{name}, {kind}"] = "refused"
    return found


# --- gradients


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def gradient_differences(shape: Shape, *, device: str) -> dict[str, float]:
    """Return how far gradients on the device are from float32 ones on the CPU, relatively."""
    load = Load(8, 2, 16, 48, 6, (8,))

    # With random weights the gradient of feed-forward values is so small that in bfloat16 it is
    # noise: they are held to float32 alone.
    lengths = {"float32": None, "bfloat16": 0}

    def gradient(backbone: Any, precision: str, chunk: int, *, rows_of: str) -> torch.Tensor:
        made = objective(
            backbone,
            load,
            prompt=8,
            precision=precision,
            chunk=chunk,
            ffn_length=lengths[rows_of],
        )
        made.backward(0)
        parts = [p.grad.reshape(-1) for p in made.method.trained().values()]
        return torch.cat(parts).double().cpu()

    backbone = made_backbone(shape, device="cpu")
    expected = {kind: gradient(backbone, "float32", 0, rows_of=kind) for kind in lengths}
    backbone.model.to(device)
    found = {}
    with exact_products():
        for precision in ("float32", "bfloat16"):
            for chunk in (0, load.chunk):
                right = expected[precision]
                made = gradient(backbone, precision, chunk, rows_of=precision)
                error = float((made - right).norm() / right.norm())
                found[f"{precision}, {'chunks' if chunk else 'whole'}"] = error
                if not error < TOLERANCE[precision]:
                    raise SystemExit(
                        f"the gradient in {precision} differs by {error:.1e} from the CPU's, "
                        f"expected less than {TOLERANCE[precision]:g}"
                    )
    return found


# --- the page


def page(found: dict[str, Any]) -> list[str]:
    load, limit = Load(**found["load"]), found["limit_tflops"]
    lines = [
        "# Training on a GPU",
        "",
        f"`{found['command']}` at commit {found['commit']} on {found['machine']}, seed 0, "
        f"{found['wall_seconds']} s. Encoders of random weights; {load.queries} queries of "
        f"{load.query_tokens} tokens with {load.passages} passages each of {load.passage_tokens} "
        f"tokens, chunks of {load.chunk} texts, bfloat16. One large product of matrices reaches "
        f"{limit:.1f} TFLOP/s here: that is the limit of which a share is given. TFLOP count the "
        "products that are done, both encodings of a chunk included.",
        "",
        "| encoder | prompt | seconds | steps/s | TFLOP/s | share of limit | GiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['encoder']} | {row['prompt']} | {row['seconds']:.3f} | {1 / row['seconds']:.3f} "
        f"| {row['tflops']:.2f} | {row['tflops'] / limit:.2f} | {row['gigabytes']:.1f} |"
        for row in found["steps"]
    ]
    lines += ["", "## Attention with prompts", "", "Milliseconds a layer and chunk.", ""]
    lines += table(found["attention"])
    lines += [
        "",
        "## Gradients",
        "",
        "Length of the difference from the CPU's float32 gradient over its length; more than "
        f"{TOLERANCE['float32']:g} in float32 or {TOLERANCE['bfloat16']:g} in bfloat16 stops the "
        "benchmark.",
        "",
        *table(found["gradients"]),
    ]
    return lines


def table(rows: list[dict[str, Any]]) -> list[str]:
    return _lib.table(
        list(rows[0]),
        [[f"{v:.1e}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows],
    )


if __name__ == "__main__":
    main()
