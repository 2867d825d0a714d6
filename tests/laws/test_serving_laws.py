"""The law that serving many tasks rests on: a batch of any mixture equals each task alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.serving import random_rows, task_encoder
from helpers.tiny import tiny_backbone

LENGTHS = st.tuples(st.integers(0, 12), st.integers(0, 9)).filter(any)
PROMPTS = st.lists(st.tuples(LENGTHS, st.integers(0, 99)), min_size=1, max_size=5)
MERGE = st.sampled_from([None, True, False])


@pytest.fixture(scope="module")
def forwards():
    from dptdr.model import Backbone
    from dptdr.serving.forward import Forward

    return {
        "bert": Forward(tiny_backbone("bert"), layout="packed"),
        "bert-padded": Forward(tiny_backbone("bert"), layout="padded"),
        "roberta": Forward(tiny_backbone("roberta"), layout="packed"),
        "mpnet": Forward(tiny_backbone("mpnet")),
        "minilm": Forward(Backbone.load("minilm"), layout="packed"),
    }


def rows_of(forward, prompts, texts):
    from dptdr.serving.forward import BatchRow

    made = [None] + [
        random_rows(forward.backbone, length, ffn_length=ffn_length, seed=seed)
        for (length, ffn_length), seed in prompts
    ]
    # Shifted positions beside unshifted ones.
    made[-1] = made[-1]._replace(shift=made[-1].prompt_length)
    generator = torch.Generator().manual_seed(len(texts))
    return [
        BatchRow(
            torch.randint(5, 90, (length,), generator=generator).tolist(), made[who % len(made)]
        )
        for length, who in texts
    ]


@pytest.mark.parametrize("name", ["bert", "bert-padded", "roberta", "mpnet"])
@given(
    prompts=PROMPTS,
    texts=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 5)), min_size=1, max_size=16),
    merge=MERGE,
)
@settings(max_examples=25)
def test_a_mixed_batch_equals_each_row_alone(forwards, name, prompts, texts, merge):
    forward = forwards[name]
    rows = rows_of(forward, prompts, texts)

    made = forward.vectors(rows, merge=merge)

    alone = torch.stack([forward.single(row) for row in rows])
    scale = alone.norm(dim=1).max().clamp(min=1.0)
    assert float((made - alone).abs().max() / scale) <= 1e-5


@given(
    prompts=PROMPTS,
    texts=st.lists(st.tuples(st.integers(1, 70), st.integers(0, 5)), min_size=1, max_size=8),
    merge=MERGE,
)
@settings(max_examples=12)
def test_a_mixed_batch_of_the_packaged_encoder_equals_each_row_alone(
    forwards, prompts, texts, merge
):
    forward = forwards["minilm"]
    rows = rows_of(forward, prompts, texts)

    made = forward.vectors(rows, merge=merge)

    alone = torch.stack([forward.single(row) for row in rows])
    assert float((made - alone).abs().max()) <= 1e-5


def test_served_vectors_equal_those_of_an_untouched_encoder(forwards, minilm):
    # The server's linear layers are exchanged; the reference here is the model room's own.
    from dptdr.serving.forward import BatchRow

    texts = ["what helps against a cold?", "a " * 200, "river", "how do I list files by size"]
    forward = forwards["minilm"]
    encoder = task_encoder(minilm, prompt_length=9, scale=0.5)
    keys, values = encoder.method.state()["shared"].unbind(1)
    prompt = random_rows(minilm, 9)._replace(
        keys=keys.transpose(1, 2).contiguous(), values=values.transpose(1, 2).contiguous()
    )
    ids = forward.tokenize(texts, side="query", max_tokens=256)

    made = forward.vectors([BatchRow(row, prompt) for row in ids]).numpy()

    np.testing.assert_allclose(made, encoder.encode_queries(texts), atol=1e-5)
