import pytest
import torch

from dptdr.errors import DptdrError
from dptdr.model.kernels import OrderedLinear
from dptdr.serving.forward import BatchRow, Forward, gather
from helpers.serving import random_rows
from helpers.tiny import ARCHITECTURES, tiny_backbone

PACKED = {
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "electra",
    "ernie",
}


def mixture(backbone, *, lengths=(5, 9, 5, 5, 2, 30, 1, 17)):
    generator = torch.Generator().manual_seed(1)
    prompts = [
        None,
        random_rows(backbone, 3, seed=1),
        random_rows(backbone, 6, seed=2),
        random_rows(backbone, 5, seed=3),
    ]
    rows = []
    for number, length in enumerate(lengths):
        ids = torch.randint(5, 90, (length,), generator=generator).tolist()
        rows.append(BatchRow(ids, prompts[number % 4]))
    return rows


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_vectors_mixed_rows_equal_each_row_alone_in_every_architecture(architecture):
    plain = Forward(tiny_backbone(architecture), layout="padded", ordered=False)
    forward = Forward(tiny_backbone(architecture))
    rows = mixture(forward.backbone)

    made = forward.vectors(rows)

    alone = torch.stack([plain.single(row) for row in rows])
    scale = alone.norm(dim=1).max().clamp(min=1.0)
    assert float((made - alone).abs().max() / scale) < 1e-5


@pytest.mark.parametrize("architecture", sorted(PACKED))
def test_layout_architectures_with_plain_positions_are_packed(architecture):
    forward = Forward(tiny_backbone(architecture))

    assert (forward.layout, forward.reason) == ("packed", "")
    assert forward.ordered


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("mpnet", "does not use the transformers attention registry"),
        ("llama", "causal"),
        ("modernbert", "local attention window"),
        ("t5", "positions"),
    ],
)
def test_layout_what_cannot_be_packed_is_padded_and_says_why(architecture, reason):
    forward = Forward(tiny_backbone(architecture))

    assert forward.layout == "padded"
    assert reason in forward.reason
    with pytest.raises(DptdrError, match=f"cannot be packed: .*{reason}"):
        Forward(tiny_backbone(architecture), layout="packed")


@pytest.mark.parametrize("pool", ["cls", "mean", "last"])
@pytest.mark.parametrize("normalise", [True, False])
def test_vectors_every_pooling_equals_the_backbone(pool, normalise):
    forward = Forward(tiny_backbone("bert", pool=pool, normalise=normalise), layout="packed")
    rows = mixture(forward.backbone)

    made = forward.vectors(rows)

    alone = torch.stack([forward.single(row) for row in rows])
    assert torch.allclose(made, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("merge", [True, False])
def test_vectors_merged_and_joined_prompts_agree(served, merge):
    rows = mixture(served.backbone, lengths=(4, 4, 4, 4, 7, 7, 7, 7))

    assert torch.allclose(
        served.vectors(rows, merge=merge), served.vectors(rows), atol=1e-5, rtol=0
    )


def test_vectors_shifted_rows_beside_unshifted_ones_keep_their_positions(served):
    for forward in (served, Forward(tiny_backbone("roberta")), Forward(tiny_backbone("mpnet"))):
        rows = mixture(forward.backbone)
        rows[1] = BatchRow(rows[1].ids, rows[1].prompt._replace(shift=3))

        made = forward.vectors(rows)

        alone = torch.stack([forward.single(row) for row in rows])
        assert torch.allclose(made, alone, atol=2e-5, rtol=0)


def test_vectors_a_shifted_text_beyond_the_positions_is_an_error(served):
    prompt = random_rows(served.backbone, 40)._replace(shift=40)
    with pytest.raises(DptdrError, match="position"):
        served.vectors([BatchRow([2, 7, 3]), BatchRow(list(range(5, 55)), prompt)])


def test_order_weights_keeps_the_vectors_and_the_fingerprint():
    plain, forward = tiny_backbone("bert"), Forward(tiny_backbone("bert"))
    rows = mixture(plain)

    exchanged = [m for m in forward.backbone.model.modules() if isinstance(m, OrderedLinear)]

    # Three blocks of six layers; the pooler's does not shape a vector but is exchanged too.
    assert len(exchanged) >= 18
    assert sum(layer.gelu for layer in exchanged) == 3
    assert forward.backbone.fingerprint == plain.fingerprint
    reference = Forward(plain, layout="padded", ordered=False)
    assert torch.allclose(forward.vectors(rows), reference.vectors(rows), atol=1e-5, rtol=0)


def test_gather_one_prompt_for_all_is_shared_not_copied(served):
    prompt = random_rows(served.backbone, 4)

    rows = gather([prompt] * 5)

    assert rows.keys.shape[1] == 1
    assert rows.keys.data_ptr() == prompt.keys.data_ptr()
    assert gather([None, None]) is None


def test_gather_mixed_prompts_each_text_sees_its_own_rows(served):
    rows = gather([random_rows(served.backbone, 4), None, random_rows(served.backbone, 2)])

    assert rows.visible.sum(dim=1).tolist() == [4, 0, 2]
