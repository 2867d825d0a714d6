import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dptdr.io.beir import BeirFolder, write_beir
from dptdr.model import Backbone, Pooling
from dptdr.pretraining.saving import save_backbone
from dptdr.records import Passage
from helpers.pretraining import (
    CASES,
    gradient_of,
    made_objective,
    relative_error,
    topic_corpus,
)
from helpers.pretraining_reference import written_out
from helpers.tiny import ARCHITECTURES, save_tiny, tiny_model, tiny_tokenizer

WORKER = Path(__file__).parents[2] / "helpers" / "pretraining.py"


@pytest.fixture(scope="session")
def prefixed(tmp_path_factory):
    """A tiny BERT with prefixes and mean vectors of length 1, compared at a low temperature."""
    pooling = Pooling(
        pool="mean", normalise=True, max_tokens=64, query_prefix="who: ", passage_prefix="the sun: "
    )
    folder = tmp_path_factory.mktemp("prefixed") / "bert"
    backbone = Backbone(tiny_model(), tiny_tokenizer(), name="tiny", pooling=pooling)
    save_backbone(folder, backbone, facts={})
    return folder


@pytest.fixture(scope="session")
def copies(tmp_path_factory):
    """A corpus in which a third of the documents occur twice, and many are too short for two."""
    path = topic_corpus(tmp_path_factory.mktemp("once") / "d", documents=30, least=1, most=40)
    passages = list(BeirFolder(path).passages())
    twice = [*passages, *(Passage(f"again-{p.id}", p.text) for p in passages[::3])]
    folder = tmp_path_factory.mktemp("copies") / "d"
    write_beir(folder, passages=twice, queries=[], qrels={}, meta={})
    return folder


@pytest.mark.parametrize(
    ("source", "chunk"), [("plain", 0), ("lm", 5), ("mean", 1), ("prefixed", 0), ("prefixed", 7)]
)
def test_loss_and_gradient_are_those_written_out(request, corpus, copies, source, chunk):
    data, batch = (copies, 16) if source in ("mean", "prefixed") else (corpus, 6)
    encoder = request.getfixturevalue(source)
    made = made_objective(data, encoder, mini_batch_size=chunk or None, batch_size=batch)
    made.temperature = 0.05 if source == "prefixed" else 1.0
    parts = []
    made._on_parts = lambda step, found: parts.append(found)
    stats, gradient = gradient_of(made, step=2)
    expected, by_hand = written_out(made, step=2, early_layer=1)
    for name, value in expected.items():
        assert parts[0][name] == pytest.approx(value, rel=1e-5)
    assert stats.loss == pytest.approx(sum(expected.values()), rel=1e-5)
    assert relative_error(gradient, by_hand) < 1e-5
    if data is copies:
        assert parts[0]["single_span_documents"] > 0


@pytest.mark.parametrize("name", ["mlm", "condenser", "contrastive"])
def test_each_part_can_stand_alone(corpus, lm, name):
    everything, _ = written_out(made_objective(corpus, lm), step=1, early_layer=1)
    parts = []
    alone = made_objective(corpus, lm, objectives=(name,))
    alone._on_parts = lambda step, found: parts.append(found)
    stats, gradient = gradient_of(alone, step=1)
    if name == "contrastive":
        # Without masked words the spans are read as they are: another loss, from zero up.
        assert alone.heads.mlm is None
        assert stats.loss > 0.0
    else:
        assert stats.loss == pytest.approx(everything[name], rel=1e-5)
    assert parts[0][name] == pytest.approx(stats.loss)
    assert float(gradient.norm()) > 0.0


def test_words_without_mask_do_not_count(corpus, lm):
    made = made_objective(corpus, lm, objectives=("mlm",))
    documents = made._documents(0, stream=22)
    (piece, *_) = made.micro_batches([text for document in documents for text in document.texts])
    emptied = piece._replace(texts=[t._replace(places=[], targets=[]) for t in piece.texts])
    states = made.states(piece)
    assert made.word_losses(emptied, states) == {}
    before = made.word_losses(piece, states)["mlm"]
    hidden = torch.ones(states.late.shape[:2], dtype=torch.bool)
    for row, text in enumerate(piece.texts):
        hidden[row, text.places] = False
    # States at places that are not masked may be anything.
    late = torch.where(hidden[..., None], torch.randn(states.late.shape), states.late)
    assert torch.equal(before, made.word_losses(piece, states._replace(late=late))["mlm"])


def test_documents_of_one_span_train_words_only(corpus, lm):
    made = made_objective(corpus, lm, min_span_tokens=18, batch_size=12)
    parts = []
    made._on_parts = lambda step, found: parts.append(found)
    stats = made.backward(0)
    documents = made._documents(0, stream=22)
    single = sum(len(document.texts) == 1 for document in documents)
    assert 0 < single < 12
    assert parts[0]["single_span_documents"] == single
    assert parts[0]["documents"] == 12
    assert stats.texts == 24 - single
    targets = sum(len(text.targets) for document in documents for text in document.texts)
    assert parts[0]["masked_tokens"] == targets


@pytest.mark.parametrize("sharing", ["tied", "untied", "query-only"])
def test_prompt_alone_gets_gradients_and_the_encoder_none(corpus, lm, sharing):
    made = made_objective(corpus, lm, prompt={"prompt_length": 3, "sharing": sharing})
    _, gradient = gradient_of(made)
    assert set(made.parameters()) == set(made.method.trained())
    assert bool((gradient != 0).all())
    for parameter in made.method.backbone.model.parameters():
        assert parameter.grad is None
    assert all(p.grad is None for p in made.heads.mlm.own_parameters().values())


def test_feed_forward_rows_of_a_prompt_are_learned_too(corpus, lm):
    made = made_objective(corpus, lm, prompt={"prompt_length": 3, "ffn_length": 2})
    made.backward(0)
    # From zero values the keys move only after the values have.
    values = made.method.trained()["shared.ffn_values"]
    assert bool((values.grad != 0).all())


def test_shifted_prompt_moves_the_positions(corpus, lm):
    losses = {
        position: made_objective(corpus, lm, prompt={"prompt_length": 3, "position": position})
        .backward(0)
        .loss
        for position in ("unshifted", "shifted")
    }
    assert abs(losses["shifted"] - losses["unshifted"]) > 1e-4


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_supported_encoder_can_be_pretrained(tmp_path, corpus, architecture):
    folder = save_tiny(tmp_path / architecture, architecture)
    made = made_objective(corpus, folder, batch_size=3)
    _, gradient = gradient_of(made)
    assert bool(torch.isfinite(gradient).all())
    reached = {
        name
        for name, parameter in made.method.trained().items()
        if parameter.grad is not None and parameter.grad.any()
    }
    layers = [name for name in made.method.trained() if "layer" in name or "block" in name]
    assert len(reached & set(layers)) >= 0.9 * len(layers)


def test_bfloat16_is_near_float32(corpus, lm):
    exact, _ = gradient_of(made_objective(corpus, lm))
    near, gradient = gradient_of(made_objective(corpus, lm, precision="bfloat16"))
    assert near.loss == pytest.approx(exact.loss, rel=0.02)
    assert near.loss != exact.loss
    assert bool(torch.isfinite(gradient).all())


def test_dev_measures_are_taken_on_held_out_documents(corpus, lm):
    made = made_objective(corpus, lm)
    found = made.measure()
    parts = ("mlm", "condenser", "contrastive")
    total = sum(found[f"loss of {name}"] for name in parts)
    assert found["negative loss"] == pytest.approx(-total)
    assert 0.0 <= found["sibling R@1"] <= found["sibling RR"] <= 1.0
    assert found == made.measure()


def test_bare_measure_leaves_the_prompt_out(corpus, lm):
    made = made_objective(corpus, lm, prompt={"prompt_length": 3, "initialisation": "random"})
    made.method.module.eval()
    without = made_objective(corpus, lm).measure()
    assert made.measure(bare=True)["loss of mlm"] == pytest.approx(without["loss of mlm"])
    assert made.measure()["loss of mlm"] != made.measure(bare=True)["loss of mlm"]


@pytest.fixture(scope="module")
def gradients(tmp_path_factory, corpus, lm):
    """The gradients of two processes."""
    out = tmp_path_factory.mktemp("several")
    settings = out / "settings.json"
    settings.write_text(
        json.dumps({"data": str(corpus), "lm": str(lm), "out": str(out)}), encoding="utf-8"
    )
    done = subprocess.run(
        [sys.executable, str(WORKER), str(settings)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return [load_file(out / f"gradients-{rank}.safetensors") for rank in (0, 1)]


@pytest.mark.parametrize("case", sorted(CASES))
def test_two_processes_are_one(gradients, corpus, lm, case):
    stats, expected = gradient_of(made_objective(corpus, lm, **CASES[case]))
    for found in gradients:
        assert float(found[case][-1]) == pytest.approx(stats.loss, rel=1e-5)
        assert relative_error(found[case][:-1], expected) < 2e-5
    assert np.isfinite(stats.loss)
