import copy

import pytest
import torch
from torch import nn

from helpers.tiny import tiny_backbone
from helpers.training import made_method


def layer(*, bias_trained=False):
    made = nn.Linear(24, 40)
    made.weight.requires_grad_(requires_grad=False)
    made.bias.requires_grad_(requires_grad=bias_trained)
    return made


needs_bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="this processor does not multiply in bfloat16",
)


def pass_through(made, inputs):
    """The output, and the gradients of inputs and bias under a gradient that is not constant."""
    inputs = inputs.clone().requires_grad_()
    made.bias.grad = None
    output = made(inputs)
    (output.float().sin() * torch.arange(output.shape[-1])).sum().backward()
    return output.detach(), inputs.grad, made.bias.grad


@pytest.mark.parametrize("bias_trained", [False, True])
@pytest.mark.parametrize(
    ("kind", "close"),
    [
        (torch.float32, 1e-6),
        pytest.param(torch.bfloat16, 2e-2, marks=needs_bfloat16),
    ],
)
def test_arranged_layers_compute_what_plain_ones_do(kind, close, bias_trained):
    from dptdr.training.frozen import FrozenLinears

    made = layer(bias_trained=bias_trained)
    frozen = FrozenLinears(nn.Sequential(made), kind=kind)
    assert len(frozen) == 1
    # Seen from the side, as rows of attention heads are.
    inputs = torch.randn(7, 5, 24).transpose(0, 1)
    plain = pass_through(made, inputs)
    with frozen.active():
        arranged = pass_through(made, inputs)
    assert arranged[0].dtype == kind
    for found, expected in zip(arranged, plain, strict=True):
        if expected is None:
            assert found is None
            continue
        assert found.shape == expected.shape
        assert (found.float() - expected).norm() < close * expected.norm()
    assert made.weight.grad is None


def test_nothing_is_arranged_where_the_processor_does_not_multiply_in_bfloat16(monkeypatch):
    from dptdr.training.frozen import FrozenLinears

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert len(FrozenLinears(layer(), kind=torch.bfloat16)) == 0
    assert len(FrozenLinears(layer(), kind=torch.float32)) == 1


def test_layers_are_as_before_afterwards_even_after_an_error():
    from dptdr.training.frozen import FrozenLinears

    model = nn.Sequential(layer())
    frozen = FrozenLinears(model, kind=torch.float32)
    inputs = torch.randn(3, 24)
    before = model(inputs)

    def fail():
        with frozen.active():
            assert "forward" in model[0].__dict__
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert torch.equal(model(inputs), before)
    assert torch.equal(copy.deepcopy(model)(inputs), before)


@pytest.mark.parametrize(
    ("name", "arranged"), [("deep-prompt", True), ("bitfit", True), ("lora", True), ("full", False)]
)
def test_only_layers_that_are_not_trained_are_arranged(name, arranged):
    from dptdr.training.frozen import FrozenLinears

    model = made_method(name).backbone.model
    linear = sum(type(module) is nn.Linear for module in model.modules())
    frozen = len(FrozenLinears(model, kind=torch.float32))
    if name == "lora":
        assert 0 < frozen < linear  # The adapters are trained.
    elif arranged:
        assert frozen == linear
    else:
        assert frozen <= 1  # The pooler shapes no vector, so it is not trained.


def test_weights_of_another_number_type_are_left_alone():
    from dptdr.training.frozen import FrozenLinears

    model = tiny_backbone("bert").model.double()
    assert len(FrozenLinears(model, kind=torch.float32)) == 0
