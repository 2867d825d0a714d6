"""Encoders that the evidence for pretraining stands on: a raw language model, and pretrained ones.

``python benchmarks/pretraining_raw.py mlm rip --sets tldr scifact``

* ``corpora``: the passages of all data sets and of both sample tasks, in one folder.
* ``mlm``: a BERT of 4 layers and 256 numbers per token with MiniLM's vocabulary, from scratch, by
  masked words alone, on the corpora.
* ``rip``: intermediate pretraining of ``mlm``, all three objectives, on a set's own passages.
* ``more``: ``mlm`` trained on by masked words on a set's own passages, for as many steps: what more
  training alone would have done.
* ``mlm-prompt``: the objective of ``rip`` for a prompt alone on ``mlm``.
* ``minilm-rip``: intermediate pretraining of MiniLM as it is shipped, on a set's own passages.
* ``minilm-prompt``: the same objective for a prompt alone on MiniLM.

All but the first two are made for each set, as ``NAME-SET``. Each is a call of ``dptdr pretrain``
that is stopped after ``--minutes`` and goes on when the script is called again; what is there is
not made again. Weights stay in ``--work``; what was said and measured goes to
``results/pretraining.jsonl``. ``mlm`` may be trained elsewhere (``--device cuda`` with
``--readers``) and put into ``--work``.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _lib

RESULTS = _lib.RESULTS / "pretraining.jsonl"
SETS = (
    *("medquad", "tldr", "squad-open", "nq-oracle", "scifact", "banking77", "msmarco-dl"),
    *("xquad-en", "python-code", "python-api"),
)
SEED = 0

COMMON = "--batch-size 32 --span-tokens 62 --chunk-texts 0 --precision bfloat16 --evaluations 2"
RECIPES: dict[str, tuple[str, str]] = {
    "mlm": ("init", "--objectives mlm --learning-rate 1e-3 --mask-share 0.2 --keep-head"),
    "rip": ("mlm", "--steps 120 --learning-rate 5e-4"),
    "more": ("mlm", "--objectives mlm --steps 120 --learning-rate 5e-4 --mask-share 0.2"),
    "mlm-prompt": ("mlm", "--prompt-only --steps 120"),
    "minilm-rip": ("minilm", "--steps 80 --learning-rate 3e-5 --head-warmup-steps 30"),
    "minilm-prompt": ("minilm", "--prompt-only --steps 80"),
}
"""What each backbone starts from, and how it is pretrained."""

JOINT = ("corpora", "init", "mlm", "minilm")
"""What is one for all sets."""


def main() -> None:
    """Make what is asked for, and all that it starts from."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=["corpora", *RECIPES])
    parser.add_argument("--sets", nargs="+", default=[], choices=SETS, help="for all but mlm")
    parser.add_argument("--options", default="--steps 1000", help="of mlm: how long, how large")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minilm", default="minilm", help="name or folder")
    parser.add_argument("--data", type=Path, default=_lib.SHARED_DATA)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dptdr-raw")
    parser.add_argument("--sets-work", type=Path, help="where data sets lie unpacked; default WORK")
    parser.add_argument("--minutes", type=float, default=7.5, help="stop a run after so long")
    parser.add_argument("--once", action="store_true", help="stop with the first run, not go on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wrap", default="", help="command that each run is put behind")
    arguments = parser.parse_args()
    for name in arguments.names:
        for data in [""] if name in JOINT else arguments.sets:
            make(name, data, arguments)


def folder_of(name: str, data: str) -> str:
    """Return the name of a backbone made for a set."""
    return name if name in JOINT else f"{name}-{data}"


def make(name: str, data: str, arguments: argparse.Namespace) -> Path:
    """Return a folder of the work, made if it is not there."""
    out: Path = arguments.work / folder_of(name, data)
    if name == "minilm":
        return Path(arguments.minilm)
    made = {"part": "encoder", "name": name, "set": data}
    if out.is_dir() and any(made.items() <= r.items() for r in _lib.read_records(RESULTS)):
        return out
    if name == "corpora":
        if not out.is_dir():
            join(out, arguments)
        return out
    if name == "init":
        if not out.is_dir():
            start(out, arguments)
        return out
    base, options = RECIPES[name]
    source = make(base, data, arguments)
    if name == "mlm":
        options = f"{options} {arguments.options}"
        corpus = make("corpora", "", arguments)
    else:
        corpus = unpacked(data, arguments)
    said = arguments.work / f"{out.name}.json"
    words = ["-m", "dptdr", "pretrain", str(corpus), "--backbone", str(source), "--out", str(out)]
    # The last of an option counts.
    words += [*shlex.split(COMMON), *shlex.split(options), "--seed", str(SEED)]
    words += ["--device", arguments.device, "--threads", str(arguments.threads)]
    words += ["--json", str(said)]
    while True:
        print(f"{time.strftime('%H:%M:%S')} {out.name}: {' '.join(words)}", flush=True)
        stop = ["timeout", str(round(arguments.minutes * 60))]
        wrapped = [*shlex.split(arguments.wrap), *stop, sys.executable, *words]
        code = subprocess.run(wrapped, stdout=sys.stderr).returncode
        if code == 0:
            break
        if code != 124 or arguments.once:
            raise SystemExit(f"{out.name}: the run ended with {code}")
    record(name, data, base=base, options=options, said=said, arguments=arguments)
    return out


def unpacked(data: str, arguments: argparse.Namespace) -> Path:
    """Return a data set's folder."""
    work = arguments.sets_work or arguments.work
    return _lib.data_folder(data, data=arguments.data, work=work)


def join(out: Path, arguments: argparse.Namespace) -> None:
    """Put all corpora into one folder."""
    folders = [str(unpacked(name, arguments)) for name in SETS]
    subprocess.run(
        [sys.executable, "-m", "dptdr", "data", "join", *folders, "--out", str(out)], check=True
    )


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
    save_backbone(out, bare, facts={"made_by": "benchmarks/pretraining_raw.py", "seed": SEED})
    # With the masked-language head: the whole model in the place of the encoder alone.
    model.save_pretrained(out)


def record(
    name: str, data: str, *, base: str, options: str, said: Path, arguments: argparse.Namespace
) -> None:
    """Write what a run said, without paths."""
    found: dict[str, Any] = json.loads(said.read_text(encoding="utf-8"))
    kept = {k: v for k, v in found.items() if k not in ("out", "run_folder")}
    facts = {
        "part": "encoder",
        "name": name,
        "set": data,
        "from": base,
        "options": f"{COMMON} {options} --seed {SEED}",
        "corpora": [data] if data else list(SETS),
        "device": arguments.device,
        "machine": _lib.machine(),
        "commit": _lib.commit(),
        **kept,
    }
    _lib.put_records(RESULTS, [facts], ("part", "name", "set"))


if __name__ == "__main__":
    main()
