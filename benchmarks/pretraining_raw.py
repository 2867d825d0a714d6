"""Encoders that the evidence for pretraining stands on: a raw language model, and pretrained ones.

``python benchmarks/pretraining_raw.py mlm rip``

* ``corpora``: the passages of all data sets and of both sample tasks, in one folder.
* ``mlm``: a BERT of 4 layers and 256 numbers per token with MiniLM's vocabulary, from scratch, by
  masked words alone, on the corpora.
* ``rip``: intermediate pretraining of ``mlm``, all three objectives, on the corpora.
* ``more``: ``mlm`` trained on by masked words for as long as ``rip`` took: what more training alone
  would have done.
* ``minilm-rip``: intermediate pretraining of MiniLM as it is shipped.
* ``minilm-prompt``: the same objective for a prompt alone on MiniLM.

Each is a call of ``dptdr pretrain`` that is stopped after ``--minutes`` and goes on when the script
is called again; what is there is not made again. Weights stay in ``--work``; what was said and
measured goes to ``results/pretraining/backbones/``.
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

import quality

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "pretraining" / "backbones"
SETS = (
    *("medquad", "tldr", "squad-open", "nq-oracle", "scifact", "banking77", "msmarco-dl"),
    *("xquad-en", "python-code", "python-api"),
)
SEED = 0

COMMON = "--batch-size 32 --span-tokens 62 --chunk-texts 0 --precision bfloat16 --evaluations 2"
RECIPES: dict[str, tuple[str, str]] = {
    "mlm": (
        "init",
        "--objectives mlm --steps 1000 --learning-rate 1e-3 --mask-share 0.2 --keep-head",
    ),
    "rip": ("mlm", "--steps 240 --learning-rate 5e-4"),
    "more": ("mlm", "--objectives mlm --steps 390 --learning-rate 5e-4 --mask-share 0.2"),
    "minilm-rip": ("minilm", "--steps 80 --learning-rate 3e-5 --head-warmup-steps 30"),
    "minilm-prompt": ("minilm", "--prompt-only --steps 80"),
}
"""What each backbone starts from, and how it is pretrained."""


def main() -> None:
    """Make what is asked for, and all that it starts from."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=["corpora", *RECIPES])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dptdr-raw")
    parser.add_argument("--sets-work", type=Path, help="where data sets lie unpacked; default WORK")
    parser.add_argument("--minutes", type=float, default=7.5, help="stop a run after so long")
    parser.add_argument("--once", action="store_true", help="stop with the first run, not go on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wrap", default="", help="command that each run is put behind")
    arguments = parser.parse_args()
    for name in arguments.names:
        make(name, arguments)


def make(name: str, arguments: argparse.Namespace) -> Path:
    """Return a folder of the work, made if it is not there."""
    out: Path = arguments.work / name
    if name == "minilm":
        return Path(name)
    if (RESULTS / f"{name}.json").is_file() and out.is_dir():
        return out
    if name == "corpora":
        if not out.is_dir():
            join(out, arguments)
        return out
    if name == "init":
        if not out.is_dir():
            start(out)
        return out
    base, options = RECIPES[name]
    source = make(base, arguments)
    corpora = make("corpora", arguments)
    said = arguments.work / f"{name}.json"
    words = ["-m", "dptdr", "pretrain", str(corpora), "--backbone", str(source), "--out", str(out)]
    words += [*shlex.split(COMMON), *shlex.split(options), "--seed", str(SEED), "--resume"]
    words += ["--threads", str(arguments.threads), "--json", str(said)]
    while True:
        print(f"{time.strftime('%H:%M:%S')} {name}: {' '.join(words)}", flush=True)
        stop = ["timeout", str(round(arguments.minutes * 60))]
        wrapped = [*shlex.split(arguments.wrap), *stop, sys.executable, *words]
        code = subprocess.run(wrapped, stdout=sys.stderr).returncode
        if code == 0:
            break
        if code != 124 or arguments.once:
            raise SystemExit(f"{name}: the run ended with {code}")
    record(name, base=base, options=options, said=said)
    return out


def join(out: Path, arguments: argparse.Namespace) -> None:
    """Put all corpora into one folder."""
    unpacking = argparse.Namespace(data=arguments.data, work=arguments.sets_work or arguments.work)
    folders = [str(quality.unpack(name, unpacking)) for name in SETS]
    subprocess.run(
        [sys.executable, "-m", "dptdr", "data", "join", *folders, "--out", str(out)], check=True
    )


def start(out: Path) -> None:
    """Write a BERT of random weights that pools as MiniLM does."""
    import torch
    import transformers

    from dptdr.model import Backbone
    from dptdr.pretraining.saving import save_backbone

    minilm = Backbone.load("minilm")
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


def record(name: str, *, base: str, options: str, said: Path) -> None:
    """Write what a run said, without paths."""
    found: dict[str, Any] = json.loads(said.read_text(encoding="utf-8"))
    kept = {k: v for k, v in found.items() if k not in ("out", "run_folder")}
    RESULTS.mkdir(parents=True, exist_ok=True)
    facts = {
        "name": name,
        "from": base,
        "options": f"{COMMON} {options} --seed {SEED}",
        "corpora": list(SETS),
        "machine": quality.machine(),
        "commit": quality.commit(),
        **kept,
    }
    text = json.dumps(facts, indent=2, sort_keys=True) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
