"""Texts in, vectors out: order, limits, progress, fingerprints."""

import numpy as np
import pytest
import torch

from dptdr.config.methods import DeepPromptConfig, LoraConfig
from dptdr.model import Encoder, Limits, MethodFactory
from dptdr.model.encoder import batch_sizes
from helpers.tiny import tiny_backbone

TEXTS = ["red car", "", "the old house of the river stone and the garden", "cat", "how when why"]


def tuned(backbone, *, seed=0, limits=None, **settings):
    config = DeepPromptConfig(
        **{"prompt_length": 3, "initialisation": "random", "random_scale": 1.0} | settings
    )
    method = MethodFactory().build("deep-prompt", backbone, config, seed=seed)
    return Encoder(backbone, method=method, limits=limits, name="task")


def test_rows_stand_in_the_given_order_and_do_not_depend_on_the_batches(tiny_bert):
    whole = Encoder(tiny_bert).encode_queries(TEXTS)
    assert whole.dtype == np.float32
    assert whole.shape == (5, 32)
    pieces = Encoder(tiny_bert, max_texts=1).encode_queries(TEXTS)
    np.testing.assert_allclose(whole, pieces, atol=1e-5)
    for row, text in zip(whole, TEXTS, strict=True):
        tokens = tiny_bert.pad(tiny_bert.tokenize([text], side="query"))
        np.testing.assert_allclose(row, tiny_bert.vectors(tokens)[0], atol=1e-5)


def test_no_texts_give_no_rows(tiny_bert):
    assert Encoder(tiny_bert).encode_passages([]).shape == (0, 32)


def test_each_side_is_cut_to_its_own_limit(tiny_bert):
    encoder = Encoder(tiny_bert, limits=Limits(max_query_tokens=4, max_passage_tokens=6))
    long = "red blue green dark light"
    np.testing.assert_allclose(
        encoder.encode_queries([long]), encoder.encode_queries(["red blue"]), atol=1e-6
    )
    np.testing.assert_allclose(
        encoder.encode_passages([long]),
        encoder.encode_passages(["red blue green dark"]),
        atol=1e-6,
    )


def test_progress_counts_texts_up_to_all_of_them(tiny_bert):
    seen = []
    encoder = Encoder(tiny_bert, max_texts=2)
    encoder.encode_queries(TEXTS, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_encoding_puts_dropout_aside_and_training_back(tiny_bert):
    encoder = tuned(tiny_bert, dropout=0.5)
    encoder.method.module.train()
    one, other = encoder.encode_queries(TEXTS), encoder.encode_queries(TEXTS)
    np.testing.assert_array_equal(one, other)
    assert encoder.method.module.training

    def fail(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoder.encode_queries(TEXTS, on_progress=fail)
    assert encoder.method.module.training, "also after an interruption"


def test_fingerprints_tell_apart_all_that_shapes_vectors(tiny_bert):
    limits = Limits(max_query_tokens=10, max_passage_tokens=20)
    encoders = [
        Encoder(tiny_bert),
        Encoder(tiny_bert, limits=limits),
        Encoder(tiny_backbone(seed=1)),
        tuned(tiny_bert),
        tuned(tiny_bert, limits=limits),
        tuned(tiny_bert, seed=1),
        tuned(tiny_bert, position="shifted"),
    ]
    for alpha in (4, 8):
        method = MethodFactory().build("lora", tiny_bert, LoraConfig(rank=2, alpha=alpha), seed=0)
        encoders.append(Encoder(tiny_bert, method=method))
    for side in ("query_fingerprint", "passage_fingerprint"):
        found = [getattr(encoder, side) for encoder in encoders]
        assert len(set(found)) == len(found)
    assert {e.backbone_fingerprint for e in encoders} == {
        tiny_bert.fingerprint,
        tiny_backbone(seed=1).fingerprint,
    }


def test_fingerprints_do_not_change_with_what_does_not_shape_vectors(tiny_bert):
    base = tuned(tiny_bert)
    for other in (
        tuned(tiny_bert, dropout=0.3),
        tuned(tiny_backbone()),
        Encoder(tiny_bert, method=base.method, name="other", token_budget=7, max_texts=2),
    ):
        assert other.query_fingerprint == base.query_fingerprint
        assert other.passage_fingerprint == base.passage_fingerprint


def test_sides_of_one_prompt_and_equal_limits_share_a_fingerprint(tiny_bert):
    tied = tuned(tiny_bert)
    assert tied.query_fingerprint == tied.passage_fingerprint
    query_only = tuned(tiny_bert, sharing="query-only")
    assert query_only.query_fingerprint == tied.query_fingerprint
    assert query_only.passage_fingerprint == Encoder(tiny_bert).passage_fingerprint
    untied = tuned(tiny_bert, sharing="untied")
    assert untied.query_fingerprint != untied.passage_fingerprint
    assert untied.query_fingerprint == tied.query_fingerprint, "the same rows"


def test_fingerprint_follows_training(tiny_bert):
    encoder = tuned(tiny_bert)
    before = encoder.query_fingerprint
    with torch.no_grad():
        for parameter in encoder.method.trained().values():
            parameter.add_(1.0)
    assert encoder.query_fingerprint != before


def test_description_holds_what_manifests_record(tiny_bert):
    encoder = tuned(tiny_bert, limits=Limits(max_query_tokens=10, max_passage_tokens=20))
    assert encoder.describe() == {
        "name": "task",
        "backbone": "tiny-bert",
        "backbone_fingerprint": tiny_bert.fingerprint,
        "query_fingerprint": encoder.query_fingerprint,
        "passage_fingerprint": encoder.passage_fingerprint,
        "dim": 32,
        "limits": {"max_query_tokens": 10, "max_passage_tokens": 20},
    }


def test_batches_are_larger_where_launches_are_waited_for():
    processor, card = batch_sizes(torch.device("cpu")), batch_sizes(torch.device("cuda"))
    assert all(a > b for a, b in zip(card, processor, strict=True))
