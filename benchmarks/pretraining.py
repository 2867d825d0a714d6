"""Cost of intermediate pretraining: tokens per second and memory.

``python benchmarks/pretraining.py --data DATA --out results/pretraining.jsonl``

* Speed, per processor second (on a GPU per second): a step of dptdr, reading, masking and all,
  against the same forward and backward passes in plain transformers on tokens that are ready, in
  turns within one run. The ratio is what the package adds; GradCache's second forward pass is shown
  apart.
* Memory: the peak of a process that takes a step, for batches of growing size, with chunks of one
  size and without.

``benchmarks/pretraining_page.py`` makes the page of them.
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _lib

PARTS: dict[str, tuple[str, ...]] = {
    "mlm": ("mlm",),
    "mlm and condenser": ("mlm", "condenser"),
    "all": ("mlm", "condenser", "contrastive"),
}


def made_objective(options: argparse.Namespace, objectives: tuple[str, ...]) -> Any:
    from dptdr.config.methods import DeepPromptConfig, NoConfig
    from dptdr.config.pretraining import PretrainingConfig
    from dptdr.io.beir import BeirFolder
    from dptdr.model import Backbone, MethodFactory
    from dptdr.pretraining.documents import Documents, Reader
    from dptdr.pretraining.kept import build_heads
    from dptdr.pretraining.objective import PretrainingObjective

    config = PretrainingConfig(
        batch_size=options.batch_size,
        mini_batch_size=options.chunk_texts or None,
        precision=options.precision,
    )
    backbone = Backbone.load(options.backbone, device=options.device)
    documents = Documents(BeirFolder(options.data), config)
    factory = MethodFactory()
    if options.prompt_only:
        settings = DeepPromptConfig(initialisation="random")
        method = factory.build("deep-prompt", backbone, settings, seed=0)
    else:
        method = factory.build("full", backbone, NoConfig(), seed=0)
    built = build_heads(
        method.backbone,
        config,
        objectives=objectives,
        frozen=options.prompt_only,
        source=options.backbone,
    )
    return PretrainingObjective(
        method,
        Reader(backbone, documents, config, masks=True),
        built.heads,
        config,
        objectives=objectives,
        temperature=0.05,
    )


def plain_step(options: argparse.Namespace, objective: Any) -> Callable[[int], int]:
    """Return the same passes in plain transformers: a step on ready tokens, giving their number."""
    import torch
    from torch.nn import functional
    from transformers import AutoModel

    from dptdr.model.backbone import resolve
    from dptdr.pretraining.documents import TRAIN

    source = resolve(options.backbone) or options.backbone
    model = AutoModel.from_pretrained(source, dtype=torch.float32).to(options.device).eval()
    heads, early = objective.heads, objective._early
    ready = []
    for step in range(options.steps):
        documents = objective._documents(step, stream=TRAIN)
        texts = [text for document in documents for text in document.texts]
        batch = []
        for piece in objective.pieces(texts):
            tokens = objective.method.backbone.pad([text.ids for text in piece.texts])
            rows = [n for n, text in enumerate(piece.texts) for _ in text.places]
            places = [place for text in piece.texts for place in text.places]
            targets = [target for text in piece.texts for target in text.targets]
            at = [torch.tensor(x, device=options.device) for x in (rows, places, targets)]
            batch.append((tokens, at))
        ready.append((sum(len(text.ids) for text in texts), batch))

    def run(step: int) -> int:
        count, batch = ready[step]
        total, vectors = torch.zeros((), device=options.device), []
        for tokens, (rows, places, targets) in batch:
            enabled = options.precision == "bfloat16"
            with torch.autocast(options.device, dtype=torch.bfloat16, enabled=enabled):
                output = model(
                    input_ids=tokens.ids,
                    attention_mask=tokens.mask,
                    output_hidden_states=heads.condenser is not None,
                )
                late = output.last_hidden_state.float()
                weights = tokens.mask.unsqueeze(-1).float()
                pooled = (late * weights).sum(1) / weights.sum(1)
                scores = []
                if "mlm" in objective.objectives:
                    scores.append(heads.mlm(late[rows, places]))
                if heads.condenser is not None:
                    states = output.hidden_states[early].float()
                    made = heads.condenser(states, vectors=pooled, mask=tokens.mask)
                    scores.append(heads.mlm(made[rows, places]))
            for each in scores:
                total = total + functional.cross_entropy(each.float(), targets, reduction="sum")
            vectors.append(functional.normalize(pooled, dim=-1))
        if "contrastive" in objective.objectives:
            stacked = torch.cat(vectors)
            similar = stacked @ stacked.T / 0.05
            similar = similar - 1e9 * torch.eye(len(stacked), device=options.device)
            labels = torch.arange(len(stacked), device=options.device) ^ 1
            labels = labels.clamp(max=len(stacked) - 1)
            total = total + functional.cross_entropy(similar, labels)
        total.backward()
        model.zero_grad(set_to_none=True)
        return count

    return run


def clock(options: argparse.Namespace) -> float:
    """Return processor seconds, which a busy machine does not falsify, or a GPU's wall clock."""
    import torch

    if not options.device.startswith("cuda"):
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def speed(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for name, objectives in PARTS.items():
        chunked = made_objective(options, objectives)
        whole = made_objective(
            argparse.Namespace(**{**vars(options), "chunk_texts": 0}), objectives
        )
        runs: dict[str, Callable[[int], int]] = {
            "plain transformers": plain_step(options, whole),
            "dptdr, whole batch": lambda step, made=whole: made.backward(step).tokens,
            "dptdr, GradCache": lambda step, made=chunked: made.backward(step).tokens,
        }
        rates: dict[str, list[float]] = {system: [] for system in runs}
        for round_number in range(options.rounds + 1):
            for system, run in runs.items():
                began = clock(options)
                tokens = sum(run(step) for step in range(options.steps))
                rate = tokens / (clock(options) - began)
                for made in (whole, chunked):
                    for parameter in made.parameters().values():
                        parameter.grad = None
                if round_number:  # The first round warms up.
                    rates[system].append(rate)
        plain = rates["plain transformers"]
        for system, values in rates.items():
            ratios = [a / b for a, b in zip(values, plain, strict=True)]
            found.append(
                {
                    "objectives": name,
                    "system": system,
                    "tokens_per_second": round(statistics.median(values), 1),
                    "ratio_to_plain": round(statistics.median(ratios), 3),
                    "ratios": [round(ratio, 3) for ratio in ratios],
                }
            )
    return found


def one_peak(options: argparse.Namespace) -> None:
    """Take a step and print the peak of memory, and what there was before them, in MB."""
    import torch

    torch.set_num_threads(options.threads)
    objective = made_objective(options, PARTS["all"])
    if options.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 1e6
        objective.backward(0)
        after = torch.cuda.max_memory_allocated() / 1e6
    else:
        before = resident("VmRSS", reset=True)
        objective.backward(0)
        after = resident("VmHWM")
    print(json.dumps({"before_mb": round(before), "peak_mb": round(after)}))


def resident(field: str, *, reset: bool = False) -> float:
    """Return this process's memory in MB, now (VmRSS) or at its peak (VmHWM) since a reset."""
    if reset:
        gc.collect()
        # What loading has left behind would hide what a step takes.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{field}:")[1].split()[0]) / 1e3


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for chunk in (options.chunk_texts, 0):
        for batch in options.batches:
            if chunk == 0 and batch > options.most_whole:
                continue
            command = [sys.executable, __file__, "--data", str(options.data), "--one-peak"]
            command += ["--backbone", options.backbone, "--batch-size", str(batch)]
            command += ["--chunk-texts", str(chunk), "--device", options.device]
            command += ["--precision", options.precision, "--threads", str(options.threads)]
            command += ["--prompt-only"] if options.prompt_only else []
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peak = json.loads(done.stdout.strip().splitlines()[-1])
            found.append({"batch_size": batch, "chunk_texts": chunk, **peak})
    return found


def command(words: list[str]) -> str:
    """Return the call without the folders that only this machine has."""
    shown = [Path(word).name if word.startswith("/") else word for word in words]
    return " ".join(["python", "benchmarks/pretraining.py", *shown])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="BEIR folder")
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--batch-size", type=int, default=16, help="documents per step")
    parser.add_argument("--chunk-texts", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1, help="steps per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--most-whole", type=int, default=64, help="largest batch without chunks")
    parser.add_argument("--parts", default="speed,memory")
    parser.add_argument("--prompt-only", action="store_true")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one-peak", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_peak:
        one_peak(options)
        return
    import torch

    torch.set_num_threads(options.threads)
    figures: dict[str, Any] = {
        "command": command(sys.argv[1:]),
        "data": options.data.name,
        "backbone": Path(options.backbone).name,
        "commit": _lib.commit(),
        "machine": _lib.machine() if options.device == "cpu" else torch.cuda.get_device_name(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "threads": options.threads,
        "precision": options.precision,
    }
    if "speed" in options.parts:
        figures["speed"] = speed(options)
        for row in figures["speed"]:
            print(
                f"{row['objectives']:20} {row['system']:20} {row['tokens_per_second']:>10,.0f} "
                f"tokens/s  {row['ratio_to_plain']:.2f} of plain"
            )
    if "memory" in options.parts:
        figures["memory"] = memory(options)
        for row in figures["memory"]:
            print(
                f"{row['batch_size']:>6} documents, chunks of {row['chunk_texts'] or 'all':>4}: "
                f"{row['peak_mb'] - row['before_mb']:,} MB above the model's {row['before_mb']:,}"
            )
    if options.out is not None:
        _lib.put_records(options.out, [{"part": "cost", **figures}], ("part",))


if __name__ == "__main__":
    main()
