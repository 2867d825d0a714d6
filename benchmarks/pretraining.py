"""Intermediate pretraining: its encoders, and results/pretraining.md.

    python benchmarks/pretraining.py encoders mlm rip --sets tldr scifact
    python benchmarks/pretraining.py page

``encoders`` makes the encoders that are compared, a raw language model and pretrained ones:

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
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import _lib

RESULTS = _lib.RESULTS / "pretraining.jsonl"
PAGE = RESULTS.with_suffix(".md")
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
    "eval_steps": 0.5,
}
SPANS = {"objectives": ("contrastive",)}
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "mlm": ("init", {"objectives": ("mlm",), "learning_rate": 1e-3, "mlm_probability": 0.2}),
    "rip": ("mlm", {"max_steps": 120, "learning_rate": 5e-4}),
    "more": (
        "mlm",
        {"objectives": ("mlm",), "max_steps": 120, "learning_rate": 5e-4, "mlm_probability": 0.2},
    ),
    "mlm-prompt": ("mlm", {"prompt_only": True, "max_steps": 120, **SPANS}),
    "minilm-rip": ("minilm", {"max_steps": 80, "learning_rate": 3e-5, "head_warmup_steps": 30}),
    "minilm-prompt": ("minilm", {"prompt_only": True, "max_steps": 80, **SPANS}),
}
"""What each backbone starts from, and how it is pretrained."""

JOINT = ("corpora", "init", "mlm", "minilm")
"""What is one for all sets."""


def encoders(arguments: argparse.Namespace) -> None:
    for name in arguments.names:
        for data in [""] if name in JOINT else arguments.sets:
            make(name, data, arguments)


def make(name: str, data: str, arguments: argparse.Namespace) -> Path:
    """Return a folder of the work, made if it is not there."""
    import dptdr

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
    steps = {"max_steps": arguments.mlm_steps, "keep_head": True} if name == "mlm" else {}
    steps["precision"] = arguments.precision
    result = dptdr.pretrain(
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
    _lib.put_records(arguments.out, [facts], ("part", "name", "set"))
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
    lines = _lib.kept_words(PAGE)
    cells = read_cells()
    for part in (
        goals(cells),
        quality(cells),
        encoder_section(),
        _lib.kept_section(PAGE, "## Cost"),
    ):
        lines += ["", *part]
    _lib.write_page(PAGE, lines)


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
    ("unified negatives add, deep prompt on RIP", "rip deep-prompt unified", "rip deep-prompt"),
    (
        "RIP, unified negatives and deep prompt against full without both",
        "rip deep-prompt unified",
        "mlm full",
    ),
    ("RIP and deep prompt against full without RIP", "rip deep-prompt", "mlm full"),
    ("RIP against more masked words, deep prompt", "rip deep-prompt", "more deep-prompt"),
    ("prompt-only RIP adds, nothing tuned", "mlm-prompt zero-shot", "mlm zero-shot"),
    ("prompt-only RIP as a start adds, deep prompt", "mlm-prompt deep-prompt", "mlm deep-prompt"),
    ("MiniLM: RIP adds, nothing tuned", "minilm-rip zero-shot", "minilm zero-shot"),
    ("MiniLM: RIP adds, deep prompt", "minilm-rip deep-prompt", "minilm deep-prompt"),
    (
        "MiniLM: prompt-only RIP as a start adds, deep prompt",
        "minilm-prompt deep-prompt",
        "minilm deep-prompt",
    ),
    ("MiniLM: prompt-only RIP adds, nothing tuned", "minilm-prompt zero-shot", "minilm zero-shot"),
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
        *_lib.kept_section(PAGE, "## What was wanted, and what was found", until="| "),
        "",
        *_lib.table(["comparison", "outcome", *SETS], rows),
    ]


def quality(cells: Cells) -> list[str]:
    lines = _lib.kept_section(PAGE, "## Figures by data set", until="### ")
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
    lines = [*_lib.kept_section(PAGE, "## The encoders", until="| "), ""]
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


def add_machine(sub: argparse.ArgumentParser) -> None:
    """Add the options that say where and with what encoders are made."""
    sub.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    sub.add_argument("--device", default="cpu")
    sub.add_argument("--threads", type=int, default=1)
    sub.add_argument("--minilm", default="minilm", help="name or folder")
    sub.add_argument("--data", type=Path, default=_lib.SHARED_DATA)
    sub.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dptdr-raw")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("encoders", help="make encoders")
    sub.add_argument("names", nargs="+", choices=["corpora", *RECIPES])
    sub.add_argument("--sets", nargs="+", default=[], choices=CORPORA, help="for all but mlm")
    sub.add_argument("--mlm-steps", type=int, default=1000, help="of the raw encoder")
    sub.add_argument("--out", type=Path, default=RESULTS)
    add_machine(sub)
    sub.set_defaults(run=encoders)
    commands.add_parser("page", help="write the page").set_defaults(run=lambda _: write_page())
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
