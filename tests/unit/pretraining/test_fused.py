import json
import math

import numpy as np
import pytest

import dptdr
from dptdr.config.requests import pretraining_request
from dptdr.config.training import TrainingConfig
from dptdr.errors import ConfigError, NoGain
from dptdr.io.beir import write_beir
from dptdr.model import Backbone, load_task
from dptdr.pretraining import fused as room
from dptdr.pretraining.fused import PseudoGroups
from dptdr.pretraining.pseudo import PseudoQuery
from dptdr.records import Passage
from helpers.tasks import WORDS

SETTINGS = {
    "prompt_only": True,
    "max_steps": 2,
    "batch_size": 4,
    "ffn_length": 3,
    "dev_documents": 4,
    "span_tokens": 16,
    "eval_steps": 1,
    "progress": False,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Forty passages of two sentences; each shares words with four others."""
    folder = tmp_path_factory.mktemp("fused") / "corpus"
    passages = [
        Passage(
            f"p{n}",
            " ".join(
                " ".join(WORDS[(3 * (n % 10) + k) % len(WORDS)] for k in order) + "."
                for order in ((n % 3, 1, 2, 0, n % 2), (2, 0, n % 3, 1, 1))
            ),
        )
        for n in range(40)
    ]
    write_beir(folder, passages=passages, queries=[], qrels={}, meta={})
    return folder


def made(corpus, out, source, **more):
    return dptdr.pretrain(corpus, out=out, backbone=str(source), **SETTINGS | more)


@pytest.fixture
def measures(monkeypatch):
    """Let held-out measures be given: the backbone's, then each checkpoint's."""

    def give(*values):
        left = iter(values)
        monkeypatch.setattr(
            "dptdr.training.train.dev_measures",
            lambda *_, **__: {"nDCG@10": (value := next(left)), "RR@10": value},
        )

    return give


def test_a_prompt_that_gains_is_written_and_starts_a_task(corpus, tmp_path, plain, measures):
    measures(0.5, 0.6, 0.55)
    result = made(corpus, tmp_path / "start", plain)
    assert (result.objectives, result.best_step, result.bare["nDCG@10"]) == (("fused",), 1, 0.5)
    assert result.run_folder == tmp_path / "start.pretraining"
    task = json.loads((tmp_path / "start" / "task.json").read_text(encoding="utf-8"))
    assert task["settings"]["prompt_length"] == 0
    assert task["training"]["pretraining"].startswith("without labels")
    backbone = Backbone.load(str(plain))
    bare = backbone.fingerprint
    vectors = load_task(tmp_path / "start", backbone=backbone).encode_passages(["river trains"])
    assert np.isfinite(vectors).all()
    assert backbone.fingerprint == bare
    # The same call once more finds it complete; it would need more measures to train.
    assert made(corpus, tmp_path / "start", plain).best_step == 1


def test_a_prompt_that_is_worse_by_less_than_noise_is_written_and_said(
    corpus, tmp_path, plain, measures, capsys
):
    measures(0.5, 0.4, 0.491)
    made(corpus, tmp_path / "start", plain)
    assert "the prompt is no better than the backbone on held-out" in capsys.readouterr().err
    assert (tmp_path / "start" / "task.json").is_file()


def test_a_prompt_that_is_worse_is_refused_unless_forced(corpus, tmp_path, plain, measures):
    measures(0.5, 0.4, 0.489)
    with pytest.raises(NoGain, match=r"not written.*0\.5000 -> 0\.4890\).*--force") as refused:
        made(corpus, tmp_path / "start", plain)
    assert refused.value.exit_code == 3
    assert not (tmp_path / "start").exists()
    # Nothing is trained or measured again.
    assert made(corpus, tmp_path / "start", plain, force=True).best_step == 2
    assert (tmp_path / "start" / "task.json").is_file()


def test_targets_mix_the_fused_ranking_with_the_backbones(plain, monkeypatch):
    pool = [Passage("0", "river"), Passage("1", "trains"), Passage("2", "gardens")]
    known = room._Known(
        np.array([[1, 0], [0.6, 0.8], [0, 1]], dtype=np.float32),
        np.array([[1, 0]], dtype=np.float32),
        [{2: 4.0, 1: 1.0}],
    )
    query = PseudoQuery("q", 1, "phrase", "trains")

    def targets(**settings):
        groups = PseudoGroups(
            Backbone.load(str(plain)), pool, [query], TrainingConfig(), **settings
        )
        groups.__dict__["_known"] = known
        return groups.targets(0, ["river", "trains", "gardens"], temperature=0.5), groups[0]

    fused, group = targets(bm25_weight=2.0, anchor=0.0)
    # Logits 2, 1.2, 0 and BM25 of 0, 1, 4, scaled to the range of 2: 2, 2.2, 4; own as the best.
    total = math.exp(2) + 2 * math.exp(4)
    expected = [math.exp(2) / total, math.exp(4) / total, math.exp(4) / total]
    assert np.exp(list(fused.values())) == pytest.approx(expected)
    # Among the other two candidates alone, BM25 at twice the range lifts the third over the first.
    assert group.negatives == ("gardens", "river")
    assert group.positives == ("trains",)
    bare, _ = targets(bm25_weight=2.0, anchor=1.0)
    total = math.exp(2) + math.exp(1.2) + 1
    only = [math.exp(2) / total, math.exp(1.2) / total, 1 / total]
    assert np.exp(list(bare.values())) == pytest.approx(only, abs=1e-6)
    half, _ = targets(bm25_weight=2.0, anchor=0.5)
    assert np.exp(list(half.values())) == pytest.approx(
        [(a + b) / 2 for a, b in zip(expected, only, strict=True)], abs=1e-6
    )


def test_too_few_pseudo_queries_are_refused(tmp_path, plain):
    folder = tmp_path / "d"
    passages = [Passage(str(n), "one") for n in range(20)]
    write_beir(folder, passages=passages, queries=[], qrels={}, meta={})
    with pytest.raises(ConfigError, match=r"pseudo-queries.*got 0 and 0 from 20 passages"):
        made(folder, tmp_path / "out", plain)


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ({"objectives": ("fused",)}, {}, "fused only applies with prompt_only"),
        ({"objectives": ("fused", "mlm")}, {"prompt_only": True}, "expected fused alone"),
        ({"dev_measure": "sibling RR"}, {"prompt_only": True}, "expected one of nDCG@10"),
        ({}, {"force": True}, "force: only applies with prompt_only"),
        ({"anchor": 0.1}, {}, "anchor: has no effect with objectives mlm, condenser, contrastive"),
        ({"mlm_probability": 0.2}, {"prompt_only": True}, "no effect with objectives fused"),
        ({"objectives": ("mlm",), "skip_from": 2}, {}, "skip_from: has no effect with objectives"),
        ({"objectives": ("mlm",), "temperature": 1.0}, {}, "temperature: has no effect with"),
        ({"initialisation": "task"}, {"prompt_only": True}, "'task' needs from_task"),
    ],
)
def test_what_does_not_fit_together_is_refused(values, options, expected):
    with pytest.raises(ConfigError, match=expected):
        pretraining_request(values, **options)


def test_span_contrast_stays_for_prompts_of_raw_encoders():
    request = pretraining_request({"objectives": ("contrastive",)}, prompt_only=True)
    assert (request.config.max_steps, request.prompt.prompt_length) == (None, 16)
    request = pretraining_request({"num_epochs": 2}, prompt_only=True)
    assert (request.config.max_steps, request.config.objectives) == (None, ("fused",))
