"""Measure what a training step costs, in seconds and in memory, beside full fine-tuning and peers.

    python benchmarks/training.py                  # all parts: results/training.jsonl and .md
    python benchmarks/training.py --parts seconds  # some of the parts
    python benchmarks/training.py --small          # a quick try with tiny sizes, writes nothing

Each figure is a ratio within one run: systems take turns at the same batches, texts, token limits,
weights and one thread. Seconds are CPU seconds, which a busy machine does not stretch. Memory is
the highest resident set while training, less what the process held before any encoder was loaded
(the libraries of all systems, and the texts); each system has a process of its own.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import _lib

RESULTS = _lib.RESULTS / "training.jsonl"
PARTS = ("seconds", "gradient", "memory", "batches")
Step = Callable[[int], None]

LENGTHS = {
    # Means and spreads of the logarithm of a text's length in words.
    "short": {"query": (1.9, 0.35), "passage": (2.9, 0.5)},
    "long": {"query": (2.3, 0.4), "passage": (4.2, 0.6)},
    "tiny": {"query": (1.4, 0.3), "passage": (1.8, 0.3)},
}
MAX_TOKENS = {"query": 64, "passage": 160}
CHUNK = 16
CHUNKED = f"chunks of {CHUNK}"
CACHED = f"sentence-transformers cached loss, {CHUNKED}"
FULL = "full fine-tuning"
QUERY_ONLY = "deep prompt, query-only, bfloat16"
ATTENTION = "deep prompt, attention rows alone"
UPPER = "deep prompt, upper three of six layers"
LORA_ALL = "LoRA, all linear layers"
SMALL_CHUNK = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each system, after one")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=32, help=argparse.SUPPRESS)
    parser.add_argument("--chunk", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--lengths", default="long", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if arguments.memory:
        print(json.dumps(measure_memory(arguments)))
        return
    found: dict[str, Any] = {}
    for part in arguments.parts:
        began = time.monotonic()
        command = f"python benchmarks/training.py --parts {part}"
        facts = {"command": command, "commit": _lib.commit()}
        measured = measure(part, small=arguments.small, rounds=arguments.rounds)
        wall = round(time.monotonic() - began)
        facts |= {"machine": _lib.machine(), "wall_seconds": wall}
        record = {"part": part, **facts, "figures": measured}
        if arguments.small:
            found[part] = record
            continue
        _lib.put_records(RESULTS, [record], ("part",))
        found = {record["part"]: record for record in _lib.read_records(RESULTS)}
        _lib.write_page(RESULTS.with_suffix(".md"), page(found))
    if arguments.small:
        print("\n".join(page(found)))


def measure(part: str, *, small: bool, rounds: int) -> Any:
    batch = 8 if small else 32
    if part == "seconds":
        chosen = ("short",) if small else ("short", "long")
        return {
            lengths: step_times(lengths, batch=batch, rounds=1 if small else rounds)
            for lengths in chosen
        }
    if part == "gradient":
        return gradient_differences(batch=batch)
    if part == "memory":
        return memory_by_system(batch=batch)
    return memory_by_batch((8, 16) if small else (64, 256, 1024, 4096))


# --- what is trained on


def made_texts(count: int, lengths: str) -> list[tuple[str, str]]:
    """Return pairs of query and passage of random words, whose lengths vary as real ones do."""
    from transformers import AutoTokenizer

    from dptdr.model.backbone import resolve

    vocabulary = AutoTokenizer.from_pretrained(str(resolve("minilm"))).get_vocab()
    words = sorted(word for word in vocabulary if word.isalpha())
    generator = np.random.default_rng(0)

    def text(side: str) -> str:
        mean, spread = LENGTHS[lengths][side]
        return " ".join(
            generator.choice(words, size=max(1, int(generator.lognormal(mean, spread))))
        )

    return [(text("query"), text("passage")) for _ in range(count)]


_BACKBONE: list[Any] = []


def backbone() -> Any:
    if not _BACKBONE:
        import torch

        from dptdr.model import Backbone

        torch.set_num_threads(1)
        _BACKBONE.append(Backbone.load("minilm"))
    return _BACKBONE[0]


# --- the systems: each returns a function that trains on one batch


def objective(
    method: str, *, batch: int, lengths: str, options: dict[str, Any] | None = None, **settings: Any
) -> Any:
    """Return what leaves the gradients of a step on the parameters, and what it trains."""
    from dptdr.config.methods import DEFAULT_CONFIGS
    from dptdr.config.training import TrainingConfig
    from dptdr.model import MethodFactory
    from dptdr.records import TrainingGroup
    from dptdr.training.objective import ContrastiveObjective
    from dptdr.training.train import set_training_mode

    pairs = made_texts(batch, lengths)
    groups = [TrainingGroup(str(i), q, (p,)) for i, (q, p) in enumerate(pairs)]
    factory = MethodFactory(
        query_texts=[q for q, _ in pairs[:64]], passage_texts=[p for _, p in pairs[:64]]
    )
    chosen = DEFAULT_CONFIGS[method](**(options or {}))  # type: ignore[index]
    made = factory.build(method, backbone(), chosen, seed=0)  # type: ignore
    set_training_mode(made)
    config = TrainingConfig(
        max_steps=1000,
        batch_size=batch,
        max_query_tokens=MAX_TOKENS["query"],
        max_passage_tokens=MAX_TOKENS["passage"],
        **settings,
    )
    return ContrastiveObjective(made, groups, config)


def ours(method: str, *, batch: int, lengths: str, **settings: Any) -> Step:
    from dptdr.training.loop import TrainState

    made = objective(method, batch=batch, lengths=lengths, **settings)
    trainable = TrainState(made.method.trained(), made.config, rate=1e-4)

    def step(number: int) -> None:
        trainable.zero_grad()
        made.backward(number)
        trainable.clip()
        trainable.update(number)

    return step


def peft_prefix(*, batch: int, lengths: str, alone: bool = False) -> Step:
    """PEFT's prefix tuning of the same encoder, in-batch negatives, one padded pass per side.

    Alone in a process it takes the encoder that is loaded, else a copy.
    """
    import copy

    import peft
    import torch

    base = backbone().model if alone else copy.deepcopy(backbone().model)
    base.set_attn_implementation("sdpa")
    settings = peft.PrefixTuningConfig(
        task_type=peft.TaskType.FEATURE_EXTRACTION, num_virtual_tokens=16
    )
    model = peft.get_peft_model(base, settings)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    pairs = made_texts(batch, lengths)

    def vectors(texts: list[str], side: str) -> Any:
        rows = backbone().tokenize(texts, side=side, max_tokens=MAX_TOKENS[side])
        tokens = backbone().pad(rows)
        states = model(input_ids=tokens.ids, attention_mask=tokens.mask).last_hidden_state
        mask = tokens.mask[:, :, None].float()
        pooled = (states * mask).sum(dim=1) / mask.sum(dim=1)
        return torch.nn.functional.normalize(pooled, dim=-1)

    def step(number: int) -> None:
        del number
        optimizer.zero_grad(set_to_none=True)
        queries = vectors([q for q, _ in pairs], "query")
        passages = vectors([p for _, p in pairs], "passage")
        scores = queries @ passages.T / 0.05
        torch.nn.functional.cross_entropy(scores, torch.arange(batch)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    step(0)
    if not any(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters):
        raise RuntimeError("PEFT's prefix gets no gradient on this encoder")
    return step


def sentence_transformers(*, batch: int, lengths: str, chunk: int) -> Step:
    """Full fine-tuning by sentence-transformers' cached loss, at the same chunk size."""
    import torch
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    model = _lib.sentence_transformer()
    loss = CachedMultipleNegativesRankingLoss(model, scale=20.0, mini_batch_size=chunk)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    pairs = made_texts(batch, lengths)
    model.train()

    def features(texts: list[str], side: str) -> Any:
        model.max_seq_length = MAX_TOKENS[side]
        prepare = getattr(model, "preprocess", None) or model.tokenize
        return prepare(texts)

    def step(number: int) -> None:
        del number
        optimizer.zero_grad(set_to_none=True)
        sides = [
            features([q for q, _ in pairs], "query"),
            features([p for _, p in pairs], "passage"),
        ]
        loss(sides, torch.zeros(batch)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def systems(*, batch: int, lengths: str) -> dict[str, Callable[[], Step]]:
    """Return name to a function that makes the system ready."""
    both: dict[str, Any] = {"batch": batch, "lengths": lengths}
    half, chunks = {"precision": "bfloat16"}, {"mini_batch_size": CHUNK}
    own: dict[str, tuple[str, dict[str, Any]]] = {
        "deep prompt": ("deep-prompt", {}),
        ATTENTION: ("deep-prompt", {"options": {"ffn_length": 0}}),
        # As many rows as in all six layers of the default.
        UPPER: ("deep-prompt", {"options": {"prompt_layers": 3, "ffn_length": 160}}),
        LORA_ALL: ("lora", {"options": {"targets": "all", "rank": 10}}),
        "deep prompt, bfloat16": ("deep-prompt", half),
        QUERY_ONLY: ("deep-prompt", half | {"options": {"sharing": "query-only"}}),
        "LoRA": ("lora", {}),
        FULL: ("full", {}),
        f"{FULL}, bfloat16": ("full", half),
        f"deep prompt, {CHUNKED}": ("deep-prompt", chunks),
        f"deep prompt, bfloat16, {CHUNKED}": ("deep-prompt", half | chunks),
        f"{FULL}, {CHUNKED}": ("full", chunks),
    }
    if not computes_in_bfloat16():
        own = {name: system for name, system in own.items() if "bfloat16" not in name}
    made = {name: partial(ours, method, **more, **both) for name, (method, more) in own.items()}
    return {
        **made,
        "PEFT prefix tuning": partial(peft_prefix, **both),
        CACHED: partial(sentence_transformers, chunk=CHUNK, **both),
    }


def computes_in_bfloat16() -> bool:
    """Return whether the processor has instructions for it; without, it is slower than float32."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if sys.platform == "linux" else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


# --- seconds

PAIRS = [
    ("deep prompt", FULL),
    (ATTENTION, FULL),
    (UPPER, FULL),
    (LORA_ALL, FULL),
    ("deep prompt, bfloat16", FULL),
    ("deep prompt, bfloat16", f"{FULL}, bfloat16"),
    (QUERY_ONLY, f"{FULL}, bfloat16"),
    ("LoRA", FULL),
    ("deep prompt", "PEFT prefix tuning"),
    (f"{FULL}, {CHUNKED}", CACHED),
    (f"deep prompt, {CHUNKED}", CACHED),
    (f"deep prompt, bfloat16, {CHUNKED}", CACHED),
]


def step_times(lengths: str, *, batch: int, rounds: int) -> dict[str, list[float]]:
    """Return CPU seconds of each system's turns; all take one turn before the next round."""
    ready = {name: make() for name, make in systems(batch=batch, lengths=lengths).items()}
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    for number in range(rounds + 1):
        for name, step in ready.items():
            began = time.process_time()
            step(number)
            if number:
                seconds[name].append(time.process_time() - began)
    return seconds


# --- gradients


def gradient_differences(*, batch: int) -> dict[str, float]:
    """Return how far a deep prompt's gradient is from that of the whole batch in float32."""
    import torch

    def gradient(**settings: Any) -> Any:
        made = objective("deep-prompt", batch=batch, lengths="short", **settings)
        made.backward(0)
        return torch.cat([p.grad.reshape(-1) for p in made.method.trained().values()]).double()

    whole = gradient()
    steps = {
        f"float32, chunks of {CHUNK}": gradient(mini_batch_size=CHUNK),
        "bfloat16": gradient(precision="bfloat16"),
        f"bfloat16, chunks of {CHUNK}": gradient(precision="bfloat16", mini_batch_size=CHUNK),
    }
    return {name: float((g - whole).norm() / whole.norm()) for name, g in steps.items()}


# --- memory


def measure_memory(arguments: argparse.Namespace) -> dict[str, float]:
    """Train in this process and return the peak above what it held before any encoder."""
    import torch

    for name in ("sentence_transformers.sentence_transformer.losses", "dptdr.training.train"):
        importlib.import_module(name)
    torch.set_num_threads(1)
    batch, lengths = arguments.batch, arguments.lengths
    texts = made_texts(batch, lengths)
    before = _lib.resident()
    method, _, kind = str(arguments.memory).partition(" ")
    if method == "peft":
        step = peft_prefix(batch=batch, lengths=lengths, alone=True)
    elif method == "sentence-transformers":
        step = sentence_transformers(batch=batch, lengths=lengths, chunk=arguments.chunk)
    else:
        precision = kind or "float32"
        chunk = arguments.chunk
        step = ours(
            method, batch=batch, lengths=lengths, mini_batch_size=chunk or None, precision=precision
        )
    assert len(texts) == batch
    # Loading may have needed more for a moment: the peak is set back to what is held now.
    _lib.resident(reset=True)
    began = time.process_time()
    steps = 1 if batch > 500 else 2
    for number in range(steps):
        step(number)
    seconds = (time.process_time() - began) / steps
    return {"megabytes": _lib.resident("VmHWM") - before, "seconds": seconds}


def in_process(name: str, *, batch: int, lengths: str, chunk: int = 0) -> dict[str, float]:
    command = [sys.executable, __file__, "--memory", name, "--batch", str(batch)]
    command += ["--lengths", lengths, "--chunk", str(chunk)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


MEMORY = {
    "deep prompt": ("deep-prompt", 0),
    "deep prompt, bfloat16": ("deep-prompt bfloat16", 0),
    "LoRA": ("lora", 0),
    FULL: ("full", 0),
    "PEFT prefix tuning": ("peft", 0),
    f"deep prompt, {CHUNKED}": ("deep-prompt", CHUNK),
    f"{FULL}, {CHUNKED}": ("full", CHUNK),
    CACHED: ("sentence-transformers", CHUNK),
}


def memory_by_system(*, batch: int) -> dict[str, float]:
    """Return the peak of each system at the same batch, in megabytes."""
    return {
        name: in_process(system, batch=batch, lengths="long", chunk=chunk)["megabytes"]
        for name, (system, chunk) in MEMORY.items()
    }


def memory_by_batch(batches: tuple[int, ...]) -> list[dict[str, float | None]]:
    """Return megabytes with chunks and without, by queries a step, for deep prompts."""
    rows: list[dict[str, float | None]] = []
    for batch in batches:
        name = "deep-prompt bfloat16"
        chunked = in_process(name, batch=batch, lengths="tiny", chunk=SMALL_CHUNK)
        whole = in_process(name, batch=batch, lengths="tiny") if batch <= 1024 else None
        rows.append(
            {
                "queries": batch,
                "chunked": chunked["megabytes"],
                "whole": None if whole is None else whole["megabytes"],
                "seconds": chunked["seconds"],
            }
        )
    return rows


# --- the page


def page(found: dict[str, Any]) -> list[str]:
    lines = _lib.kept_words(RESULTS.with_suffix(".md"))
    sections = (seconds_section, gradient_section, memory_section, batches_section)
    for part, section in zip(PARTS, sections, strict=True):
        if part in found:
            facts = found[part]
            lines += section(facts["figures"])
            lines += [
                "",
                f"`{facts['command']}` at commit {facts['commit']} on {facts['machine']}, one "
                f"thread, seed 0, {facts['wall_seconds']} s.",
            ]
    return lines


def gradient_section(figures: dict[str, float]) -> list[str]:
    return [
        "",
        "## What bfloat16 and chunks do to a deep prompt's gradient",
        "",
        "Length of the difference over the length of the float32 gradient of the whole batch, for "
        "one step with short texts.",
        "",
        *_lib.table(["step", "difference"], [[n, f"{value:.1e}"] for n, value in figures.items()]),
    ]


def seconds_section(figures: dict[str, dict[str, list[float]]]) -> list[str]:
    lines = []
    for lengths, times in figures.items():
        q, p = (round(float(np.exp(LENGTHS[lengths][side][0]))) for side in ("query", "passage"))
        rounds = len(next(iter(times.values())))
        lines += ["", f"## Seconds, {lengths} texts", ""]
        lines += [f"Queries of {q} and passages of {p} words (medians), {rounds} rounds.", ""]
        medians = [[name, f"{statistics.median(t):.3f}"] for name, t in times.items()]
        lines += [*_lib.table(["system", "seconds per step"], medians), ""]
        rows = []
        for one, other in PAIRS:
            if one not in times or other not in times:
                continue
            ratios = [a / b for a, b in zip(times[one], times[other], strict=True)]
            found = (statistics.median(ratios), min(ratios), max(ratios))
            rows.append([f"{one} / {other}", *(f"{ratio:.2f}" for ratio in found)])
        lines += _lib.table(["ratio", "median", "lowest", "highest"], rows)
    return lines


def memory_section(figures: dict[str, float]) -> list[str]:
    full = figures[FULL]
    lines = ["", "## Memory, long texts", "", "The encoder itself, 90 MB, is part of it.", ""]
    rows = [[name, f"{mb:.0f}", f"{mb / full:.2f}"] for name, mb in figures.items()]
    return lines + _lib.table(["system", "MB", "of full fine-tuning"], rows)


def batches_section(figures: list[dict[str, Any]]) -> list[str]:
    first, last = figures[0], figures[-1]
    lines = [
        "",
        "## Memory of deep prompts as the batch grows",
        "",
        f"bfloat16, texts of 4 and 6 words. From {first['queries']:,} to {last['queries']:,} "
        f"queries the peak grows by a factor of {last['chunked'] / first['chunked']:.2f} in chunks "
        f"of {SMALL_CHUNK} texts.",
        "",
    ]
    head = ["queries (and as many passages)", f"MB, chunks of {SMALL_CHUNK}", "MB, whole batch"]
    rows = [
        [
            f"{row['queries']:,}",
            f"{row['chunked']:.0f}",
            "" if row["whole"] is None else f"{row['whole']:.0f}",
            f"{row['seconds']:.1f}",
        ]
        for row in figures
    ]
    return lines + _lib.table([*head, "seconds per step, chunks"], rows)


if __name__ == "__main__":
    main()
