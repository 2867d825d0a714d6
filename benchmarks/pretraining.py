"""Intermediate pretraining: its encoders, its cost, and results/pretraining.md.

    python benchmarks/pretraining.py encoders mlm rip --sets tldr scifact
    python benchmarks/pretraining.py cost --data DATA
    python benchmarks/pretraining.py page

``encoders`` makes what the evidence stands on, a raw language model and pretrained ones:

* ``corpora``: the passages of all data sets and of both sample tasks, in one folder.
* ``mlm``: a BERT of 4 layers and 256 numbers per token with MiniLM's vocabulary, from scratch, by
  masked words alone, on the corpora.
* ``rip``: intermediate pretraining of ``mlm``, all three objectives, on a set's own passages.
* ``more``: ``mlm`` trained on by masked words on a set's own passages, for as many steps: what more
  training alone would have done.
* ``mlm-prompt``: span contrast for a prompt alone on ``mlm``.
* ``minilm-rip``: intermediate pretraining of MiniLM as it is shipped, on a set's own passages.
* ``minilm-prompt``: span contrast for a prompt alone on MiniLM.

All but the first two are made for each set, as ``NAME-SET``. A run that was stopped goes on; what
is complete is not made again. Weights stay in ``--work``; what was measured goes to
``results/pretraining.jsonl``.

``cost`` measures, for a step of dptdr, reading, masking and all:

* Speed, per processor second (on a GPU per second), against the same forward and backward passes in
  plain transformers on tokens that are ready, in turns within one run. GradCache's second forward
  pass is shown apart.
* Memory: the peak of a process that takes a step, for batches of growing size, with chunks of one
  size and without.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _lib

RESULTS = _lib.RESULTS / "pretraining.jsonl"
SEED = 0

# --- encoders

CORPORA = (
    *("medquad", "tldr", "squad-open", "nq-oracle", "scifact", "banking77", "msmarco-dl"),
    *("xquad-en", "python-code", "python-api"),
)
COMMON = {
    "batch_size": 32,
    "span_tokens": 62,
    "mini_batch_size": None,
    "precision": "bfloat16",
    "eval_steps": 0.5,
}
SPANS = {"objectives": ("contrastive",)}
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "mlm": ("init", {"objectives": ("mlm",), "learning_rate": 1e-3, "mlm_probability": 0.2}),
    "rip": ("mlm", {"max_steps": 120, "learning_rate": 5e-4}),
    "more": (
        "mlm",
        {
            "objectives": ("mlm",),
            "max_steps": 120,
            "learning_rate": 5e-4,
            "mlm_probability": 0.2,
        },
    ),
    "mlm-prompt": ("mlm", {"prompt_only": True, "max_steps": 120, **SPANS}),
    "minilm-rip": ("minilm", {"max_steps": 80, "learning_rate": 3e-5, "head_warmup_steps": 30}),
    "minilm-prompt": ("minilm", {"prompt_only": True, "max_steps": 80, **SPANS}),
}
"""What each backbone starts from, and how it is pretrained."""

JOINT = ("corpora", "init", "mlm", "minilm")
"""What is one for all sets."""


def make(name: str, data: str, arguments: argparse.Namespace) -> Path:
    """Return a folder of the work, made if it is not there."""
    from dptdr import api

    if name == "minilm":
        return Path(arguments.minilm)
    out: Path = arguments.work / (name if name in JOINT else f"{name}-{data}")
    if name == "corpora" and not out.is_dir():
        folders = [str(unpacked(each, arguments)) for each in CORPORA]
        join = [sys.executable, "-m", "dptdr", "data", "join", *folders, "--out", str(out)]
        subprocess.run(join, check=True)
    if name == "init" and not out.is_dir():
        start(out, arguments)
    if name not in RECIPES:
        return out
    base, settings = RECIPES[name]
    source = make(base, data, arguments)
    steps = {"max_steps": arguments.steps, "keep_head": True} if name == "mlm" else {}
    result = api.pretrain(
        make("corpora", "", arguments) if name == "mlm" else unpacked(data, arguments),
        out=out,
        backbone=str(source),
        device=arguments.device,
        threads=arguments.threads,
        seed=SEED,
        **COMMON | settings | steps,
    )
    assert result is not None
    facts = {
        "part": "encoder",
        "name": name,
        "set": data,
        "from": base,
        "options": shown(COMMON | settings | steps | {"seed": SEED}),
        "corpora": [data] if data else list(CORPORA),
        "device": arguments.device,
        "machine": _lib.machine(),
        "commit": _lib.commit(),
        "objectives": list(result.objectives),
        "dev": {str(step): measures for step, measures in result.history.items()},
        "bare_dev": result.bare,
        "best_step": result.best_step,
        "tokens": result.tokens,
        "training_seconds": result.seconds,
    }
    _lib.put_records(RESULTS, [facts], ("part", "name", "set"))
    return out


def shown(settings: dict[str, Any]) -> str:
    return " ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())


def unpacked(data: str, arguments: argparse.Namespace) -> Path:
    return _lib.data_folder(data, data=arguments.data, work=arguments.work)


def start(out: Path, arguments: argparse.Namespace) -> None:
    """Write a BERT of random weights that pools as MiniLM does."""
    import torch
    import transformers

    from dptdr.model import Backbone
    from dptdr.pretraining.saving import save_backbone

    minilm = Backbone.load(arguments.minilm)
    config = transformers.BertConfig(
        vocab_size=len(minilm.tokenizer),
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
    )
    torch.manual_seed(SEED)
    model = transformers.BertForMaskedLM(config)
    bare = Backbone(model.bert, minilm.tokenizer, name="init", pooling=minilm.pooling)
    save_backbone(out, bare, facts={"made_by": "benchmarks/pretraining.py", "seed": SEED})
    # With the masked-language head: the whole model in the place of the encoder alone.
    model.save_pretrained(out)


# --- cost

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
        before = _lib.resident(reset=True)
        objective.backward(0)
        after = _lib.resident("VmHWM")
    print(json.dumps({"before_mb": round(before), "peak_mb": round(after)}))


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for chunk in (options.chunk_texts, 0):
        for batch in options.batches:
            if chunk == 0 and batch > options.most_whole:
                continue
            command = [sys.executable, __file__, "cost", "--data", str(options.data)]
            command += ["--one-peak"]
            command += ["--backbone", options.backbone, "--batch-size", str(batch)]
            command += ["--chunk-texts", str(chunk), "--device", options.device]
            command += ["--precision", options.precision, "--threads", str(options.threads)]
            command += ["--prompt-only"] if options.prompt_only else []
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peak = json.loads(done.stdout.strip().splitlines()[-1])
            found.append({"batch_size": batch, "chunk_texts": chunk, **peak})
    return found


def cost(options: argparse.Namespace) -> None:
    import torch

    if options.one_peak:
        one_peak(options)
        return
    torch.set_num_threads(options.threads)
    figures: dict[str, Any] = {
        "part": "cost",
        "command": f"python benchmarks/pretraining.py cost --data {options.data.name}",
        "data": options.data.name,
        "backbone": Path(options.backbone).name,
        "commit": _lib.commit(),
        "machine": _lib.machine() if options.device == "cpu" else torch.cuda.get_device_name(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "threads": options.threads,
        "precision": options.precision,
        "speed": speed(options),
        "memory": memory(options),
    }
    print(json.dumps(figures, indent=1))
    if options.out is not None:
        _lib.put_records(options.out, [figures], ("part",))


# --- page

SETS = ("tldr", "scifact", "medquad", "nq-oracle", "python-code", "python-api")
BACKBONES = ("mlm", "rip", "mlm-prompt", "more", "minilm", "minilm-rip", "minilm-prompt")
METHODS = ("zero-shot", "deep-prompt", "full")
NEGATIVES = ("in-batch", "unified")
MEASURES = ("nDCG@10", "RR@10", "R@100")
Row = tuple[str, str, str]
"""Backbone, method, negatives."""

Cells = dict[tuple[str, *Row], list[dict[str, Any]]]
"""Records of all seeds by set and row."""

NAMES = {
    "mlm": "raw",
    "rip": "raw + RIP",
    "mlm-prompt": "raw + prompt-only RIP",
    "more": "raw + more masked words",
    "minilm": "MiniLM",
    "minilm-rip": "MiniLM + RIP",
    "minilm-prompt": "MiniLM + prompt-only RIP",
}
ALPHA = 0.05


def write_page() -> None:
    lines = [
        "# Intermediate pretraining",
        "",
        "Made by `python benchmarks/pretraining.py page` from `pretraining.jsonl`. Words: "
        "[docs/pretraining.md](../docs/pretraining.md). RIP: retrieval-oriented intermediate "
        "pretraining with all three objectives.",
    ]
    cells = read_cells()
    for part in (goals(cells), quality(cells), encoder_section(), cost_section()):
        lines += ["", *part]
    _lib.write_page(RESULTS.with_suffix(".md"), lines)


def read_cells() -> Cells:
    cells: Cells = {}
    for record in _lib.read_records(RESULTS):
        if record["part"] != "cell":
            continue
        row = (record["backbone"], record["method"], record["negatives"])
        cells.setdefault((record["set"], *row), []).append(record)
    return cells


def test(own: list[dict[str, Any]], other: list[dict[str, Any]]) -> Any:
    """Compare two systems by each query's mean over the seeds that both have."""
    shared = {r["seed"] for r in own} & {r["seed"] for r in other}
    return _lib.paired(*([r for r in side if r["seed"] in shared] for side in (own, other)))


def gain(cells: Cells, name: str, own: Row, other: Row) -> tuple[str, int]:
    """Return a difference with its p-value, and 1, -1 or 0: better, worse or undecided."""
    a, b = cells.get((name, *own)), cells.get((name, *other))
    if a is None or b is None:
        return "not measured", 0
    found = test(a, b)
    p = found.p_randomisation
    seeds = len({r["seed"] for r in a} & {r["seed"] for r in b})
    shown = f"{found.mean_difference:+.4f}, p {_lib.p_text(p)} ({seeds})"
    return shown, (1 if found.mean_difference > 0 else -1) if p < ALPHA else 0


# Title, then backbone, method and negatives of both sides.
COMPARISONS = [
    ("RIP adds, nothing tuned", "rip zero-shot", "mlm zero-shot"),
    ("RIP adds, deep prompt", "rip deep-prompt", "mlm deep-prompt"),
    (
        "RIP adds, deep prompt, unified negatives",
        "rip deep-prompt unified",
        "mlm deep-prompt unified",
    ),
    ("RIP adds, full fine-tuning", "rip full", "mlm full"),
    (
        "unified negatives add, deep prompt on RIP",
        "rip deep-prompt unified",
        "rip deep-prompt",
    ),
    (
        "RIP, unified negatives and deep prompt against full without both",
        "rip deep-prompt unified",
        "mlm full",
    ),
    ("RIP and deep prompt against full without RIP", "rip deep-prompt", "mlm full"),
    ("RIP against more masked words, deep prompt", "rip deep-prompt", "more deep-prompt"),
    ("prompt-only RIP adds, nothing tuned", "mlm-prompt zero-shot", "mlm zero-shot"),
    (
        "prompt-only RIP as a start adds, deep prompt",
        "mlm-prompt deep-prompt",
        "mlm deep-prompt",
    ),
    ("MiniLM: RIP adds, nothing tuned", "minilm-rip zero-shot", "minilm zero-shot"),
    ("MiniLM: RIP adds, deep prompt", "minilm-rip deep-prompt", "minilm deep-prompt"),
    (
        "MiniLM: prompt-only RIP as a start adds, deep prompt",
        "minilm-prompt deep-prompt",
        "minilm deep-prompt",
    ),
    (
        "MiniLM: prompt-only RIP adds, nothing tuned",
        "minilm-prompt zero-shot",
        "minilm zero-shot",
    ),
]


def row(words: str) -> Row:
    backbone, method, *negatives = words.split()
    return backbone, method, negatives[0] if negatives else "in-batch"


def goals(cells: Cells) -> list[str]:
    """Say how often each comparison came out which way."""
    rows = []
    for title, own, other in COMPARISONS:
        found = [gain(cells, name, row(own), row(other)) for name in SETS]
        measured = [sign for shown, sign in found if shown != "not measured"]
        rows.append(
            [
                title,
                f"{measured.count(1)} better, {measured.count(-1)} worse, "
                f"{measured.count(0)} undecided"
                if measured
                else "not measured",
                *(shown for shown, _ in found),
            ]
        )
    return [
        "## What was wanted, and what was found",
        "",
        "Wanted: RIP gives a significant gain for deep prompts on the raw encoder in every set, "
        "and on average on MiniLM; RIP with deep prompts reaches at least full fine-tuning without "
        "it. Differences of nDCG@10 and p of the paired randomisation test over queries (each "
        "query's mean over seeds, whose number stands in brackets); better and worse at "
        f"p < {ALPHA}.",
        "",
        *_lib.table(["comparison", "outcome", *SETS], rows),
    ]


def quality(cells: Cells) -> list[str]:
    lines = [
        "## Figures by data set",
        "",
        "A new cell is `python benchmarks/quality.py run --encoder FOLDER`. Test sets are capped, "
        "so figures are higher than over the full corpora; texts are cut at 64 tokens, in training "
        "as in the test. Unified negatives: besides those of the batch one a query, drawn from 10 "
        "of the union of BM25's and MiniLM's first hundred, without what MiniLM scores above 95 % "
        "of the "
        "positive: the same file for all encoders, so that a stronger one chose them than the raw "
        "ones that learn from them.",
    ]
    origins = set()
    for name in SETS:
        rows = []
        for backbone in BACKBONES:
            for method, negatives in itertools.product(METHODS, NEGATIVES):
                records = cells.get((name, backbone, method, negatives))
                if records is None:
                    continue
                first = records[0]
                origins.add(f"commit {first['commit']}, {first['machine']}, {first['precision']}")
                rate = f"{first['learning_rate']:g}" if "learning_rate" in first else ""
                steps = str(first.get("steps", ""))
                measures = [_lib.spread([r["measures"][m] for r in records]) for m in MEASURES]
                seeds = ", ".join(str(r["seed"]) for r in records)
                own = "" if method == "zero-shot" else negatives
                rows.append([NAMES[backbone], method, own, *measures, steps, rate, seeds])
        lines += ["", f"### {name}", ""]
        if not rows:
            lines.append("Not measured.")
            continue
        caps = next(c[0] for key, c in cells.items() if key[0] == name)
        lines += [f"{caps['queries']} test queries, {caps['passages']} passages.", ""]
        head = ["encoder", "method", "negatives", *MEASURES, "steps", "learning rate", "seeds"]
        lines += _lib.table(head, rows)
    return [*lines, "", *(f"- {origin}" for origin in sorted(origins))]


def encoder_section() -> list[str]:
    lines = [
        "## The encoders",
        "",
        "Made by `python benchmarks/pretraining.py encoders`, seeded. The raw encoder (4 layers, "
        "256 numbers per token, MiniLM's vocabulary, mean pooling) starts at random and has "
        "seen the passages of all data sets here and of both sample tasks, nothing else: it knows "
        "far less than a published checkpoint, and its figures say what pretraining adds, not what "
        "is reached by it. It was trained on one NVIDIA H200, which other trainings shared. All "
        "others are made on one set's own passages, on one processor core. (An earlier raw "
        "encoder, whose masked-word loss stood at 6.7, and RIP on all corpora joined did harm on "
        "three sets of three.)",
        "",
    ]
    rows = []
    records = [r for r in _lib.read_records(RESULTS) if r["part"] == "encoder"]
    found = {(record["name"], record["set"]): record for record in records}
    for name, (base, settings) in RECIPES.items():
        for data in [""] if name in JOINT else SETS:
            made = found.get((name, data))
            if made is not None:
                rows.append(encoder_row(name, data, base=base, settings=settings, made=made))
    head = ["encoder", "on", "from", "options", "held-out losses", "sibling RR", "tokens"]
    return lines + _lib.table([*head, "seconds"], rows)


def encoder_row(
    name: str, data: str, *, base: str, settings: dict[str, Any], made: dict[str, Any]
) -> list[str]:
    best = made["dev"][str(made["best_step"])]
    losses = ", ".join(
        f"{part} {made['bare_dev'][f'loss of {part}']:.2f} -> {best[f'loss of {part}']:.2f}"
        for part in made["objectives"]
    )
    return [
        NAMES[name],
        data or "all",
        NAMES.get(base, "random weights"),
        f"`{shown(settings) if data else made['options']}`",
        losses,
        f"{made['bare_dev']['sibling RR']:.3f} -> {best['sibling RR']:.3f}",
        f"{made['tokens']:,}",
        f"{made['training_seconds']:.0f}",
    ]


def cost_section() -> list[str]:
    lines = ["## Cost", ""]
    found = next((r for r in _lib.read_records(RESULTS) if r["part"] == "cost"), None)
    if found is None:
        return [*lines, "Not measured."]
    lines += [
        f"`{found['command']}`, commit {found['commit']}, {found['machine']}, {found['threads']} "
        f"thread, {found['precision']}, torch {found['torch']}, encoder {found['backbone']}.",
        "",
        "Tokens per second of processor time. Plain transformers makes the same forward and "
        "backward passes on tokens that are ready; dptdr reads, cuts and masks them as well. "
        "Medians over rounds in turns; the ratio is the median of the rounds' ratios.",
        "",
    ]
    rows = [
        [
            row["objectives"],
            row["system"],
            f"{row['tokens_per_second']:,.0f}",
            f"{row['ratio_to_plain']:.2f}",
        ]
        for row in found["speed"]
    ]
    lines += _lib.table(["objectives", "system", "tokens/s", "of plain"], rows)
    lines += ["", "Memory of a step with all objectives, above the loaded model:", ""]
    rows = [
        [
            f"{row['batch_size']:,}",
            str(row["chunk_texts"] or "whole batch"),
            f"{row['peak_mb'] - row['before_mb']:,}",
        ]
        for row in found["memory"]
    ]
    lines += _lib.table(["documents per step", "spans per chunk", "MB"], rows)
    return [
        *lines,
        "",
        "On a GPU only the raw encoder was trained, beside up to 15 other trainings on the same "
        "card and 16 cores: 120,500 tokens a second with five reading processes. Alone, and as a "
        "share of the card's limit, it was not measured.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("encoders", help="make encoders")
    sub.add_argument("names", nargs="+", choices=["corpora", *RECIPES])
    sub.add_argument("--sets", nargs="+", default=[], choices=CORPORA, help="for all but mlm")
    sub.add_argument("--steps", type=int, default=1000, help="of mlm")
    sub.add_argument("--minilm", default="minilm", help="name or folder")
    sub.add_argument("--data", type=Path, default=_lib.SHARED_DATA)
    sub.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dptdr-raw")
    sub.set_defaults(run=make_all)
    sub = commands.add_parser("cost", help="measure speed and memory")
    sub.add_argument("--data", type=Path, required=True, help="BEIR folder")
    sub.add_argument("--backbone", default="minilm")
    sub.add_argument("--batch-size", type=int, default=16, help="documents per step")
    sub.add_argument("--chunk-texts", type=int, default=16)
    sub.add_argument("--steps", type=int, default=1, help="steps per round")
    sub.add_argument("--rounds", type=int, default=3)
    sub.add_argument("--batches", type=int, nargs="+", default=[16, 64, 256])
    sub.add_argument("--most-whole", type=int, default=64, help="largest batch without chunks")
    sub.add_argument("--prompt-only", action="store_true")
    sub.add_argument("--precision", default="float32")
    sub.add_argument("--out", type=Path)
    sub.add_argument("--one-peak", action="store_true", help=argparse.SUPPRESS)
    sub.set_defaults(run=cost)
    commands.add_parser("page", help="write the page").set_defaults(run=lambda _: write_page())
    for name in ("encoders", "cost"):
        commands.choices[name].add_argument("--device", default="cpu")
        commands.choices[name].add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.run(options)


def make_all(arguments: argparse.Namespace) -> None:
    """Make what is asked for, and all that it starts from."""
    for name in arguments.names:
        for data in [""] if name in JOINT else arguments.sets:
            make(name, data, arguments)


if __name__ == "__main__":
    main()
