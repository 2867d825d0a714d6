import pytest
import torch

from dptdr.config.methods import DeepPromptConfig, LoraConfig
from helpers.tiny import tiny_backbone
from helpers.training import METHODS, gradients, made_groups, made_method, relative_error

GROUPS = made_groups(7)

# Other chunks are other matrix shapes, whose sums are rounded otherwise: in float32 that moves the
# tiny encoders' gradients by up to 1.8e-6. So equality is shown twice: to 1e-12 in float64 for any
# chunks, and to 1e-6 in float32 for the same chunks with and without the cache.
ROUNDING = 4e-6


@pytest.fixture
def float64(monkeypatch):
    """Everything in float64, also what is float32 on purpose."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    yield
    torch.set_default_dtype(before)


def doubled(name, **options):
    method = made_method(name, **options)
    method.backbone.model.double()
    method.module.double()
    return method


@pytest.mark.parametrize("name", sorted(METHODS))
def test_chunked_gradient_is_the_whole_gradient_for_any_chunk_size(float64, name):
    # The deep prompt has dropout here.
    method = doubled(name)
    loss, expected = gradients(method, GROUPS)
    for chunk in (1, 3, 5, 13):
        chunked_loss, found = gradients(method, GROUPS, mini_batch_size=chunk)
        assert chunked_loss == pytest.approx(loss, rel=1e-12)
        assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize("name", sorted(METHODS))
def test_chunked_gradient_in_float32_is_the_whole_gradient(monkeypatch, name):
    method = made_method(name)
    loss, other_chunks = gradients(method, GROUPS)
    chunked_loss, found = gradients(method, GROUPS, mini_batch_size=3)
    assert chunked_loss == pytest.approx(loss, rel=1e-6)
    assert relative_error(found, other_chunks) < ROUNDING
    from dptdr.training import objective

    monkeypatch.setattr(objective, "backward_in_chunks", objective.backward_at_once)
    _, same_chunks = gradients(method, GROUPS, mini_batch_size=3)
    assert relative_error(found, same_chunks) < 1e-6


@pytest.mark.parametrize("name", sorted(METHODS))
def test_chunked_gradient_with_checkpointing_is_the_whole_gradient(float64, name):
    _, expected = gradients(doubled(name), GROUPS)
    method = doubled(name)
    method.backbone.injection.enable_checkpointing()
    _, whole = gradients(method, GROUPS)
    _, chunked = gradients(method, GROUPS, mini_batch_size=4)
    assert relative_error(whole, expected) < 1e-12
    assert relative_error(chunked, expected) < 1e-12


@pytest.mark.parametrize(("precision", "close"), [("float32", ROUNDING), ("bfloat16", 0.1)])
@pytest.mark.parametrize("name", ["deep-prompt", "lora", "bitfit"])
def test_chunks_with_checkpointing_on_arranged_weights_have_the_plain_gradient(
    monkeypatch, name, precision, close
):
    method = made_method(name)
    method.backbone.injection.enable_checkpointing()
    _, found = gradients(method, GROUPS, mini_batch_size=4, precision=precision)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    _, expected = gradients(made_method(name), GROUPS)
    assert relative_error(found, expected) < close


@pytest.mark.parametrize("name", sorted(METHODS))
def test_chunked_gradient_in_bfloat16_is_near_the_whole_gradient(name):
    method = made_method(name)
    _, exact = gradients(method, GROUPS)
    _, whole = gradients(method, GROUPS, precision="bfloat16")
    _, chunked = gradients(method, GROUPS, precision="bfloat16", mini_batch_size=4)
    # bfloat16 holds 8 bits: what chunks change is no more than what rounding changes.
    assert relative_error(whole, exact) < 0.1
    assert relative_error(chunked, whole) < 0.1


@pytest.mark.parametrize("sharing", ["untied", "query-only"])
def test_chunked_gradient_of_other_prompts_is_the_whole_gradient(float64, sharing):
    config = DeepPromptConfig(prompt_length=3, dropout=0.3, sharing=sharing, reparametrisation=5)
    method = doubled("deep-prompt", config=config)
    _, expected = gradients(method, GROUPS)
    _, found = gradients(method, GROUPS, mini_batch_size=3)
    assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize("architecture", ["roberta", "mpnet", "albert", "modernbert"])
def test_chunked_gradient_on_other_encoders_is_the_whole_gradient(float64, architecture):
    method = doubled("deep-prompt", backbone=tiny_backbone(architecture, pool="cls"))
    _, expected = gradients(method, GROUPS)
    _, found = gradients(method, GROUPS, mini_batch_size=3)
    assert relative_error(found, expected) < 1e-12


def test_lora_dropout_is_repeated_in_the_second_pass():
    from dptdr.config.training import TrainingConfig
    from dptdr.training.gradcache import backward_at_once, backward_in_chunks
    from dptdr.training.objective import ContrastiveObjective

    method = made_method("lora", config=LoraConfig(rank=2, dropout=0.5))
    objective = ContrastiveObjective(
        method, GROUPS, TrainingConfig(batch_size=len(GROUPS), mini_batch_size=3)
    )
    batch = objective.collect([(0, item) for item in range(len(GROUPS))])
    pieces = objective.micro_batches(batch)
    found = []
    for run in (backward_at_once, backward_in_chunks):
        for parameter in method.trained().values():
            parameter.grad = None
        torch.manual_seed(11)
        run(objective._encode, pieces, lambda v: objective._loss(batch, pieces, v))
        found.append(torch.cat([p.grad.reshape(-1) for p in method.trained().values()]).double())
    assert relative_error(found[1], found[0]) < 1e-6
    torch.manual_seed(12)
    for parameter in method.trained().values():
        parameter.grad = None
    backward_at_once(objective._encode, pieces, lambda v: objective._loss(batch, pieces, v))
    other = torch.cat([p.grad.reshape(-1) for p in method.trained().values()]).double()
    assert relative_error(other, found[0]) > 1e-2  # Dropout was at work.


def test_prompt_dropout_differs_between_steps_and_is_repeated_within_one():
    method = made_method("deep-prompt")
    _, first = gradients(method, GROUPS, step=0, positives_per_query=2, negatives_per_query=3)
    _, again = gradients(method, GROUPS, step=0, positives_per_query=2, negatives_per_query=3)
    assert torch.equal(first, again)
    prompt = method.module["shared"]
    prompt.draw_dropout(1)
    one = prompt.attention().keys.detach().clone()
    prompt.draw_dropout(2)
    assert not torch.equal(one, prompt.attention().keys)
    dropped = float((one == 0).float().mean())
    assert dropped == pytest.approx(0.3, abs=0.08)
    method.module.eval()
    assert float((prompt.attention().keys == 0).float().mean()) == 0.0


def test_chunk_larger_than_the_batch_is_the_whole_batch():
    method = made_method("deep-prompt")
    loss, expected = gradients(method, GROUPS)
    chunked_loss, found = gradients(method, GROUPS, mini_batch_size=10_000)
    assert chunked_loss == loss
    assert torch.equal(found, expected)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_large_batch_loss_in_blocks_is_the_loss_in_one(monkeypatch, precision):
    from dptdr.training import objective

    method = made_method("deep-prompt")
    loss, expected = gradients(method, GROUPS, precision=precision)
    monkeypatch.setitem(objective._SCORES_PER_BLOCK, "cpu", 20)
    block_loss, found = gradients(method, GROUPS, precision=precision)
    cached_loss, cached = gradients(method, GROUPS, precision=precision, mini_batch_size=50)
    assert block_loss == pytest.approx(loss, rel=1e-6)
    assert cached_loss == pytest.approx(loss, rel=1e-6)
    rounding = ROUNDING if precision == "float32" else 0.01
    assert relative_error(found, expected) < rounding
    assert relative_error(cached, expected) < rounding


def test_passages_of_a_query_only_task_are_encoded_once(monkeypatch):
    method = made_method("deep-prompt", config=DeepPromptConfig(sharing="query-only"))
    seen = []
    original = type(method).vectors

    def counted(self, tokens, *, side, observer=None):
        seen.append((side, torch.is_grad_enabled()))
        return original(self, tokens, side=side, observer=observer)

    monkeypatch.setattr(type(method), "vectors", counted)
    gradients(method, GROUPS, mini_batch_size=4)
    passages = [entry for entry in seen if entry[0] == "passage"]
    assert len(passages) == 4  # 14 passages in chunks of 4.
    assert not any(enabled for _, enabled in passages)
