"""Train the encoders that studies of intermediate pretraining compare.

    python benchmarks/pretraining.py encoders mlm rip --sets tldr scifact

``encoders`` trains a raw language model and pretrained encoders:

* ``corpora``: the passages of all data sets and of both sample tasks, in one folder.
* ``mlm``: a BERT of 4 layers and 256 dimensions with MiniLM's vocabulary, trained from scratch on
  the corpora with masked words only.
* ``rip``: intermediate pretraining of ``mlm``, all three objectives, on a set's own passages.
* ``more``: ``mlm`` trained on a set's own passages for as many further steps with masked words
  only, as a control.
* ``mlm-prompt``: span contrast for a prompt alone on ``mlm``.
* ``minilm-rip``: intermediate pretraining of the released MiniLM, on a set's own passages.
* ``minilm-prompt``: span contrast for a prompt alone on MiniLM.

All but the first two are trained for each set, as ``NAME-SET``. Stopped runs are resumed, complete
ones are not repeated. Weights stay in ``--work``; measurements go to
``results/pretraining.jsonl``.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import _lib

RESULTS = _lib.RESULTS / "pretraining.jsonl"
SEED = 0

# --- encoders

SETS = ("tldr", "scifact", "medquad", "nq-oracle", "python-code", "python-api")
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


def add_machine(sub: argparse.ArgumentParser) -> None:
    """Add the options that say where and with what encoders are made."""
    sub.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    _lib.add_options(sub, device="cpu", threads=1, minilm=("minilm", "name or folder"))
    _lib.add_options(sub, data=_lib.SHARED_DATA, work=_lib.temporary("raw"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("encoders", help="make encoders")
    sub.add_argument("names", nargs="+", choices=["corpora", *RECIPES])
    sub.add_argument("--sets", nargs="+", default=[], choices=CORPORA, help="for all but mlm")
    _lib.add_options(sub, mlm_steps=(1000, "of the raw encoder"), out=RESULTS)
    add_machine(sub)
    sub.set_defaults(call=encoders)
    _lib.obey(parser)


if __name__ == "__main__":
    main()
