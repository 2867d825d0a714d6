"""Figures of the server: speed, mixtures of tasks, memory, time to add a task.

    python benchmarks/serving.py prepare --data MEDQUAD TLDR --work WORK
    python benchmarks/serving.py run peers prompts tasks lora memory backends joining --work WORK
    python benchmarks/serving.py run int8 --work WORK --data TLDR --task BUNDLE
    python benchmarks/serving.py page

``prepare`` takes texts out of BEIR folders and converts the encoder for the peers; each part of
``run`` writes one record of ``results/serving.jsonl``; ``page`` makes ``results/serving.md`` of
them (and of ``serving_soak.py``'s). Each part is a ratio between systems that take turns inside one
run, so that a busy machine slows all of them alike. Times are processor seconds of a whole process
(tokenising included); wall clock ratios are beside them.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _lib
from serving_backends import backends, int8, joining, peers
from serving_mixtures import lora, memory, prompts, tasks
from serving_tools import interpreter, read_texts


def prepare(options: argparse.Namespace) -> None:
    """Write texts, and the encoder as the peers want it; what cannot be made is said."""
    from dptdr.model import Backbone
    from dptdr.model.backbone import resolve
    from dptdr.serving.onnx.exporting import export

    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    texts = read_texts(options.data, options.texts)
    (work / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    if not (work / "model").exists():
        shutil.copytree(resolve("minilm"), work / "model")
    if not (work / "onnx" / "model.onnx").exists():
        write_peer_graph(work / "model", work / "onnx")
    if not (work / "export").exists():
        export(Backbone.load("minilm"), work / "export", int8=True)
    converter = interpreter(options, "ctranslate2")
    code = (
        "import ctranslate2.converters as c; "
        f"c.TransformersConverter({str(work / 'model')!r}).convert("
        f"{str(work / 'ctranslate2')!r}, force=True)"
    )
    if subprocess.run([converter, "-c", code], check=False).returncode:
        sys.stderr.write("ctranslate2 cannot convert the encoder; it is left out\n")


def write_peer_graph(model: Path, out: Path) -> None:
    """Write the encoder's plain graph, as sentence-transformers' ONNX backend runs it."""
    import torch
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(str(model), device="cpu")
    bert, tokenizer = loaded[0].auto_model, loaded.tokenizer
    out.mkdir(parents=True, exist_ok=True)
    sample = tokenizer(["a b c", "d"], padding=True, return_tensors="pt")
    names = ("input_ids", "attention_mask", "token_type_ids")
    shape = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        bert,
        kwargs={name: sample[name] for name in names},
        f=str(out / "model.onnx"),
        dynamo=True,
        dynamic_shapes={name: shape for name in names},
        input_names=list(names),
        external_data=False,
        verbose=False,
    )
    tokenizer.save_pretrained(str(out))
    bert.config.save_pretrained(str(out))


PARTS: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
    "peers": peers,
    "prompts": prompts,
    "tasks": tasks,
    "lora": lora,
    "memory": memory,
    "backends": backends,
    "joining": joining,
    "int8": int8,
}


def run(options: argparse.Namespace) -> None:
    """Run the parts that were asked for; each writes its figures, with where they come from."""
    import torch

    torch.set_num_threads(options.threads)
    for part in options.parts:
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as name:
            found = PARTS[part](options, Path(name))
        record = {
            "part": part,
            "command": f"python benchmarks/serving.py run {part} --texts {options.texts} "
            f"--rounds {options.rounds}",
            "commit": _lib.commit(),
            "machine": _lib.machine(),
            "threads": options.threads,
            "rounds": options.rounds,
            "seed": 0,
            "load average before and after": [round(load, 1), round(os.getloadavg()[0], 1)],
            **found,
        }
        _lib.put_records(options.out, [record], ("part",))
        print(json.dumps(record), flush=True)


def main() -> None:
    """Do what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["prepare", "run", "page"])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="parts to run")
    parser.add_argument("--work", type=Path, default=Path("bench/serving"))
    parser.add_argument("--data", type=Path, nargs="+", help="BEIR folders")
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--task", type=Path, help="tuned bundle, for int8")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--passages", type=int, default=4000)
    parser.add_argument("--peer-python", nargs="+", help="PEER=INTERPRETER with its packages")
    parser.add_argument("--out", type=Path, default=_lib.RESULTS / "serving.jsonl")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if options.action == "prepare":
        prepare(options)
    elif options.action == "run":
        run(options)
    else:
        from serving_page import write_page

        write_page(options.out)


if __name__ == "__main__":
    main()
