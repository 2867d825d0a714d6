"""One task as ONNX graphs: the same vectors as torch, where there is no torch."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dptdr.cli.app import build_app
from dptdr.config.methods import DeepPromptConfig, LoraConfig, ShallowPromptConfig
from dptdr.model import Backbone, Encoder, Limits, MethodFactory, load_task, save_task
from helpers.tiny import save_tiny

for name in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(name, reason=f"SKIPPED LOUDLY: ONNX export is not tested without {name}")

pytestmark = pytest.mark.filterwarnings("ignore")

TEXTS = ["red car", "how does the moon grow in the garden of the old house of the river", "who"]
CASES = {
    "tied": ("deep-prompt", DeepPromptConfig(prompt_length=3)),
    "untied": ("deep-prompt", DeepPromptConfig(prompt_length=3, ffn_length=2, sharing="untied")),
    "query-only": (
        "deep-prompt",
        DeepPromptConfig(prompt_length=3, ffn_length=0, sharing="query-only"),
    ),
    "shifted": ("deep-prompt", DeepPromptConfig(prompt_length=3, position="shifted")),
    "shallow": ("shallow-prompt", ShallowPromptConfig(prompt_length=3)),
    "lora": ("lora", LoraConfig(rank=2)),
}
# What docs/integrations.md shows; a process in which torch and dptdr cannot be imported.
WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = sys.modules["dptdr"] = sys.modules["transformers"] = None
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder, out, *texts = sys.argv[1:]
about = json.load(open(f"{folder}/export.json"))
for side, facts in about["sides"].items():
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.enable_truncation(facts["max_tokens"])
    tokenizer.enable_padding(pad_id=about["padding_id"])
    session = onnxruntime.InferenceSession(f"{folder}/{facts['file']}")
    encoded = tokenizer.encode_batch([facts["prefix"] + text for text in texts])
    (vectors,) = session.run(
        None,
        {
            "input_ids": np.array([text.ids for text in encoded]),
            "attention_mask": np.array([text.attention_mask for text in encoded]),
        },
    )
    np.save(f"{out}/{side}.npy", vectors)
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("fold") / "tiny", seed=3)


SLOW = [
    pytest.param(case, marks=pytest.mark.learning)
    for case in ("query-only", "shifted", "shallow", "lora")
]


def tuned(tiny, case, *, limits=None):
    backbone = Backbone.load(str(tiny))
    kind, config = CASES[case]
    method = MethodFactory().build(kind, backbone, config, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in method.trained().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
    method.module.eval()
    return Encoder(backbone, method=method, limits=limits)


@pytest.mark.parametrize("case", ["shallow", pytest.param("shifted", marks=pytest.mark.learning)])
def test_prompts_that_take_room_from_the_text_lower_its_limit(tmp_path, case):
    # Texts may have as many tokens as there are positions.
    tiny = save_tiny(tmp_path / "tiny")
    room = json.loads((tiny / "config.json").read_text("utf-8"))["max_position_embeddings"]
    settings = json.loads((tiny / "tokenizer_config.json").read_text("utf-8"))
    settings["model_max_length"] = room
    (tiny / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    encoder = tuned(tiny, case)
    assert encoder.limits == Limits(max_query_tokens=room - 3, max_passage_tokens=room - 3)
    save_task(tmp_path / "task", encoder)
    arguments = ["export", "--fold", "--task", tmp_path / "task", "--out", tmp_path / "graph"]
    ended = CliRunner().invoke(build_app(), [str(argument) for argument in arguments])
    assert ended.exit_code == 0, ended.output + repr(ended.exception)
    words = ["the", "garden", "of", "the", "old", "house", "of", "the", "river"] * room
    texts = [*TEXTS, *(" ".join(words[: room + more]) for more in (-5, -4, -3, -2, -1, 0, 9))]

    ours = load_task(tmp_path / "task")
    run_without_torch(tmp_path, texts)
    expected = ours.encode_passages(texts)
    np.testing.assert_allclose(np.load(tmp_path / "passage.npy"), expected, atol=1e-4)

    whole = Limits(max_query_tokens=room, max_passage_tokens=room)
    save_task(tmp_path / "old", tuned(tiny, case, limits=whole))
    arguments = ["export", "--fold", "--task", tmp_path / "old", "--out", tmp_path / "other"]
    ended = CliRunner().invoke(build_app(), [str(argument) for argument in arguments])
    words = f"texts of up to {room} tokens do not fit beside its prompt (at most {room - 3})"
    assert words in str(ended.exception)


def run_without_torch(folder, texts):
    subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(folder / "graph"), str(folder), *texts],
        check=True,
    )


@pytest.mark.parametrize("case", ["tied", "untied", *SLOW])
def test_vectors_without_torch_equal_the_tasks(tiny, tmp_path, case):
    limits = Limits(max_query_tokens=9, max_passage_tokens=14)
    save_task(tmp_path / "task", tuned(tiny, case, limits=limits))

    arguments = ["export", "--fold", "--task", tmp_path / "task", "--out", tmp_path / "graph"]
    ended = CliRunner().invoke(build_app(), [str(argument) for argument in arguments])

    assert ended.exit_code == 0, ended.output + repr(ended.exception)
    graphs = sorted(file.name for file in (tmp_path / "graph").glob("*.onnx"))
    two_sided = case in ("untied", "query-only")
    assert graphs == (["passage.onnx", "query.onnx"] if two_sided else ["model.onnx"])
    ours = load_task(tmp_path / "task")
    run_without_torch(tmp_path, TEXTS)
    for side, expected in (
        ("query", ours.encode_queries(TEXTS)),
        ("passage", ours.encode_passages(TEXTS)),
    ):
        np.testing.assert_allclose(np.load(tmp_path / f"{side}.npy"), expected, atol=1e-4)
    about = json.loads((tmp_path / "graph" / "export.json").read_text())
    assert about["query_fingerprint"] == ours.query_fingerprint


def test_fold_refuses_options_of_the_other_export(tmp_path):
    ended = CliRunner().invoke(build_app(), ["export", "--fold", "--out", str(tmp_path / "graph")])

    assert "--fold: expected --task" in str(ended.exception)
