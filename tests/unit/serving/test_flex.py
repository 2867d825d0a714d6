"""FlexAttention by its reference on the processor: the same call and masks as on a GPU."""

import pytest
import torch

from dptdr.errors import BackboneError, DptdrError
from dptdr.serving.engine.forward import Forward, Row
from dptdr.serving.flex import FlexForward, make_call
from helpers.serving import random_rows
from helpers.tiny import tiny_backbone


def mixture(backbone):
    generator = torch.Generator().manual_seed(1)
    prompts = [
        None,
        random_rows(backbone, 3, seed=1),
        random_rows(backbone, 6, seed=2, joint=False),
        random_rows(backbone, 5, seed=3)._replace(shift=2),
    ]
    return [
        Row(torch.randint(5, 90, (length,), generator=generator).tolist(), prompts[n % 4])
        for n, length in enumerate((5, 9, 5, 5, 2, 30, 1, 17))
    ]


@pytest.mark.parametrize(
    ("architecture", "pool", "normalise"),
    [("bert", "mean", True), ("roberta", "cls", False), ("electra", "last", True)],
)
def test_vectors_of_a_mixed_batch_equal_each_row_alone(architecture, pool, normalise):
    plain = Forward(
        tiny_backbone(architecture, pool=pool, normalise=normalise), layout="padded", ordered=False
    )
    forward = FlexForward(tiny_backbone(architecture, pool=pool, normalise=normalise))
    rows = mixture(plain.backbone)

    made = forward.vectors(rows)

    alone = torch.stack([plain.single(row) for row in rows])
    assert float((made - alone).abs().max() / alone.norm(dim=1).max().clamp(min=1.0)) <= 1e-5


def test_make_call_holds_each_task_once_and_shows_it_to_its_own_texts_only(served):
    a, b = random_rows(served.backbone, 2, seed=1), random_rows(served.backbone, 3, seed=2)

    call = make_call([2, 1, 2], [a, b, a], total=128, device=torch.device("cpu"))

    assert call.added is None
    assert call.joint.keys.shape[3] == 128
    assert torch.equal(call.joint.keys[:, 0, :, :2], a.keys.transpose(1, 2))
    assert torch.equal(call.joint.keys[:, 0, :, 2:5], b.keys.transpose(1, 2))
    zero = torch.tensor(0)
    seen = [
        [int(key) for key in torch.arange(133) if call.joint.mask.mask_mod(zero, zero, query, key)]
        for query in torch.arange(5)
    ]
    # Columns: two rows of a, three of b, filling up to 128, then the tokens.
    assert seen == [
        [0, 1, 128, 129],
        [0, 1, 128, 129],
        [2, 3, 4, 130],
        [0, 1, 131, 132],
        [0, 1, 131, 132],
    ]


def test_make_call_without_prompts_is_the_tokens_alone():
    call = make_call([3, 4], [None, None], total=128, device=torch.device("cpu"))

    assert call.joint.keys is None
    assert call.joint.mask.shape[-2:] == (128, 128)


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ("mpnet", "does not ask the registry"),
        ("t5", "positions"),
        ("modernbert", "differ from padded"),
    ],
)
def test_what_the_mask_cannot_say_is_refused(architecture, words):
    with pytest.raises(DptdrError, match=words):
        FlexForward(tiny_backbone(architecture))


def test_a_causal_model_is_refused_by_its_vectors():
    with pytest.raises(BackboneError, match="FlexAttention"):
        FlexForward(tiny_backbone("llama"))
