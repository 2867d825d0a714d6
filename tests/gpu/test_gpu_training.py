"""What must hold on a GPU as on a CPU."""

import pytest
import torch

from dptdr.config.methods import DeepPromptConfig
from helpers.training import METHODS, gradients, made_groups, made_method, relative_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

GROUPS = made_groups(7)


def on_gpu(name, **options):
    method = made_method(name, **options)
    method.backbone.model.to("cuda")
    method.module.to("cuda")
    return method


@pytest.fixture(autouse=True)
def exact_products():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("name", sorted(METHODS))
def test_gradient_is_that_of_the_cpu(name):
    loss, expected = gradients(made_method(name), GROUPS)
    for chunk in (0, 4):
        found_loss, found = gradients(on_gpu(name), GROUPS, mini_batch_size=chunk or None)
        assert found_loss == pytest.approx(loss, rel=1e-4)
        # The GPU sums in another order; dropout is drawn on the CPU and is the same.
        assert relative_error(found.cpu(), expected) < 1e-4


def test_gradient_in_bfloat16_is_near_that_of_the_cpu():
    config = DeepPromptConfig(prompt_length=3)
    _, expected = gradients(made_method("deep-prompt", config=config), GROUPS)
    _, found = gradients(on_gpu("deep-prompt", config=config), GROUPS, precision="bfloat16")
    assert relative_error(found.cpu(), expected) < 0.1


def test_optimiser_state_is_restored_where_the_parameters_lie():
    from dptdr.config.training import TrainingConfig
    from dptdr.training.loop import TrainState

    config = TrainingConfig(max_steps=4)
    runs = []
    for stop in (None, 2):
        method = on_gpu("deep-prompt")
        trainable = TrainState(method.trained(), config, rate=0.01)
        for step in range(4):
            if step == stop:
                kept = {name: tensor.cpu().clone() for name, tensor in trainable.tensors().items()}
                method = on_gpu("deep-prompt")
                trainable = TrainState(method.trained(), config, rate=0.01)
                trainable.restore(kept)
            for parameter in trainable.parameters.values():
                parameter.grad = torch.full_like(parameter, 0.5 + step)
            trainable.clip()
            trainable.update(step)
        runs.append({n: p.detach().cpu() for n, p in trainable.parameters.items()})
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
