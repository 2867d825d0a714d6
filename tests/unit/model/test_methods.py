"""The five tuning methods: what is trained, what they refuse, what they leave alone."""

import pytest
import torch

from dptdr.config.methods import DeepPromptConfig, EmptyConfig, LoraConfig, ShallowPromptConfig
from dptdr.errors import BundleError, ConfigError
from dptdr.model import DeepPrompt, Method, MethodFactory
from dptdr.model.prompt import random_rows
from helpers.tiny import tiny_backbone

TEXTS = ["red car", "the old house of the river stone", "cat"]
CONFIGS = {
    "deep-prompt": DeepPromptConfig(prompt_length=3),
    "shallow-prompt": ShallowPromptConfig(prompt_length=3),
    "lora": LoraConfig(rank=2),
    "bitfit": EmptyConfig(),
    "full": EmptyConfig(),
}


def build(backbone, name, config=None, *, seed=0, **factory):
    factory = {"query_texts": TEXTS, "passage_texts": TEXTS} | factory
    return MethodFactory(**factory).build(name, backbone, config or CONFIGS[name], seed=seed)


def tokens_of(backbone):
    return backbone.pad(backbone.tokenize(TEXTS, side="query"))


@pytest.mark.parametrize("name", CONFIGS)
def test_method_gives_a_gradient_to_all_it_trains_and_leaves_the_backbone_alone(name):
    backbone = tiny_backbone()
    before = {n: p.clone() for n, p in backbone.model.named_parameters()}
    method = build(backbone, name)
    assert isinstance(method, Method)
    trained = method.trained()
    optimiser = torch.optim.SGD(trained.values(), lr=0.1)
    reached = set()
    for _ in range(2):
        optimiser.zero_grad()
        method.vectors(tokens_of(backbone), side="query").pow(2).sum().backward()
        # LoRA's first factor gets a gradient once its second factor has left zero.
        reached |= {n for n, p in trained.items() if p.grad is not None and p.grad.any()}
        optimiser.step()
    # A bias on keys shifts all scores of a query alike, so no softmax can feel it.
    deaf = {n for n in trained if n.endswith("key.bias")}
    assert set(trained) - reached <= deaf
    assert all(torch.equal(p, before[n]) for n, p in backbone.model.named_parameters())
    assert all(p.grad is None for p in backbone.model.parameters())
    assert method.base_fingerprint == backbone.fingerprint


def test_numbers_trained_are_those_of_the_books():
    backbone = tiny_backbone()
    count = {
        name: sum(p.numel() for p in build(backbone, name).trained().values()) for name in CONFIGS
    }
    weights = sum(
        p.numel() for n, p in backbone.model.named_parameters() if not n.startswith("pooler.")
    )
    biases = sum(
        p.numel()
        for n, p in backbone.model.named_parameters()
        if n.endswith("bias") and not n.startswith("pooler.")
    )
    assert count == {
        "deep-prompt": 2 * 3 * 32 * 3,
        "shallow-prompt": 3 * 32,
        "lora": 3 * 2 * (2 * 32 + 2 * 32),
        "bitfit": biases,
        "full": weights,
    }


@pytest.mark.parametrize("name", ["lora", "bitfit", "full"])
def test_untrained_weight_methods_make_the_backbone_s_vectors(name):
    backbone = tiny_backbone()
    method = build(backbone, name)
    tokens = tokens_of(backbone)
    assert torch.equal(method.vectors(tokens, side="query"), backbone.vectors(tokens))


@pytest.mark.parametrize(
    "architecture", ["distilbert", "albert", "modernbert", "qwen3", "t5", "mpnet", "deberta-v2"]
)
def test_lora_finds_query_and_value_projections(architecture):
    backbone = tiny_backbone(architecture)
    method = build(backbone, "lora")
    method.vectors(tokens_of(backbone), side="query").pow(2).sum().backward()
    second = [p for n, p in method.trained().items() if "lora_B" in n]
    assert second
    assert all(p.grad is not None and p.grad.any() for p in second)


def test_bitfit_without_biases_is_refused():
    with pytest.raises(ConfigError, match="'bitfit': T5EncoderModel has no such weights"):
        build(tiny_backbone("t5"), "bitfit")


def test_shallow_prompt_is_the_same_words_put_before_the_embeddings():
    backbone = tiny_backbone("t5")
    method = build(backbone, "shallow-prompt")
    words = backbone.model.get_input_embeddings().weight
    rows = method.state()["shared"]
    chosen = [int((words - row).abs().sum(dim=1).argmin()) for row in rows]
    tokens = tokens_of(backbone)
    ids = torch.cat([torch.tensor([chosen] * 3), tokens.ids], dim=1)
    mask = torch.cat([torch.ones(3, 3, dtype=torch.long), tokens.mask], dim=1)
    states = backbone.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, 3:]
    weights = tokens.mask[:, :, None]
    expected = (states * weights).sum(dim=1) / weights.sum(dim=1)
    torch.testing.assert_close(method.vectors(tokens, side="query"), expected, rtol=1e-5, atol=1e-5)


def test_shallow_prompt_cuts_texts_that_leave_it_no_room():
    backbone = tiny_backbone(max_tokens=8)
    method = build(backbone, "shallow-prompt")
    long = backbone.pad(backbone.tokenize(["red " * 20], side="query"))
    short = type(long)(long.ids[:, :5], long.mask[:, :5])
    assert long.ids.shape[1] == 8
    assert torch.equal(method.vectors(long, side="query"), method.vectors(short, side="query"))


def test_shallow_prompt_without_any_room_is_refused():
    backbone = tiny_backbone(max_tokens=8)
    with pytest.raises(ConfigError, match="leaves no room"):
        build(backbone, "shallow-prompt", ShallowPromptConfig(prompt_length=8))


@pytest.mark.parametrize("name", ["deep-prompt", "shallow-prompt"])
@pytest.mark.parametrize("sharing", ["tied", "untied", "query-only"])
def test_sharing_decides_which_side_meets_which_prompt(name, sharing):
    backbone = tiny_backbone()
    method = build(backbone, name, type(CONFIGS[name])(prompt_length=3, sharing=sharing))
    tokens = tokens_of(backbone)
    query, passage = (method.vectors(tokens, side=side) for side in ("query", "passage"))
    assert torch.equal(query, passage) == (sharing == "tied")
    bare = backbone.vectors(tokens)
    assert torch.equal(passage, bare) == (sharing == "query-only")
    assert method.changes("query")
    assert method.changes("passage") == (sharing != "query-only")
    assert set(method.state()) == ({"query", "passage"} if sharing == "untied" else {"shared"})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (DeepPromptConfig(prompt_length=-1), "prompt_length: expected 0 to 4096 rows, got -1"),
        (DeepPromptConfig(dropout=1.0), r"dropout: expected a probability in \[0, 1\), got 1.0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tiny_bert, config, said):
    with pytest.raises(ConfigError, match=said):
        build(tiny_bert, "deep-prompt", config)


def test_settings_of_another_method_are_refused(tiny_bert):
    with pytest.raises(ConfigError, match="expected LoraConfig, got"):
        build(tiny_bert, "lora", DeepPromptConfig())


def test_rows_of_another_task_start_a_prompt_and_foreign_ones_are_refused(tiny_bert):
    rows = random_rows(tiny_bert.geometry, prompt_length=5, scale=1.0, seed=1)
    config = DeepPromptConfig(prompt_length=5, initialisation="task")
    method = build(tiny_bert, "deep-prompt", config, rows={"shared": rows})
    assert torch.equal(method.state()["shared"], rows)
    with pytest.raises(ConfigError, match="expected a prompt 'shared' to start from, got"):
        build(tiny_bert, "deep-prompt", config, rows={"passage": rows})
    other = DeepPromptConfig(prompt_length=4, initialisation="task")
    with pytest.raises(ConfigError, match="expected 5, the length of the initial prompt, got 4"):
        build(tiny_bert, "deep-prompt", other, rows={"shared": rows})
    with pytest.raises(BundleError, match=r"\(3, 2, 4, 'prompt', 8\), got \(3, 2, 4, 5, 7\)"):
        build(tiny_bert, "deep-prompt", config, rows={"shared": rows[..., :7]})


@pytest.mark.parametrize("architecture", ["bert", "albert", "mpnet"])
def test_rows_in_the_upper_layers_leave_no_graph_below_and_are_those_of_a_whole_prompt(
    architecture,
):
    """The lowest layer is the bare encoder's; the last ones take the rows as ever."""
    backbone = tiny_backbone(architecture)
    settings = {"prompt_length": 3, "ffn_length": 2, "initialisation": "random"}
    upper = build(backbone, "deep-prompt", DeepPromptConfig(prompt_layers=2, **settings))
    whole = build(backbone, "deep-prompt", DeepPromptConfig(**settings))
    for name, rows in upper.state().items():
        assert rows.shape[0] == 2
        if "ffn" in name:
            assert torch.equal(rows, whole.state()[name][-2:])
    with torch.no_grad():
        for parameter in upper.trained().values():
            parameter.add_(torch.randn(parameter.shape))
    tokens = tokens_of(backbone)
    outputs = {}
    for method in (upper, None):
        seen = []

        def observe(layer, query, key, value, mask, scale, seen=seen):
            del mask, scale
            seen.append((query, key, value))

        if method is None:
            backbone.vectors(tokens, observer=observe)
        else:
            method.vectors(tokens, side="query", observer=observe)
        outputs[method is None] = seen
    graphs = [any(tensor.requires_grad for tensor in layer) for layer in outputs[False]]
    assert graphs == [False] * (len(graphs) - 1) + [True]
    for bare, prompted in zip(outputs[True][-2], outputs[False][-2], strict=True):
        assert torch.equal(bare, prompted), "the layer below the rows"
    upper.vectors(tokens, side="query").sum().backward()
    assert all(p.grad.flatten(1).any(dim=1).all() for p in upper.trained().values())


def test_random_rows_are_a_function_of_the_seed(tiny_bert):
    def rows(seed):
        return random_rows(tiny_bert.geometry, prompt_length=400, scale=0.5, seed=seed)

    assert torch.equal(rows(3), rows(3))
    assert not torch.equal(rows(3), rows(4))
    assert rows(3).std().item() == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("name", ["deep-prompt", "shallow-prompt", "lora", "full"])
def test_state_of_one_method_loads_into_another_of_the_same_settings(tiny_bert, name):
    one, other = build(tiny_bert, name, seed=1), build(tiny_bert, name, seed=2)
    with torch.no_grad():
        for parameter in one.trained().values():
            parameter.add_(0.1)
    other.load(one.state())
    tokens = tokens_of(tiny_bert)
    assert torch.equal(other.vectors(tokens, side="query"), one.vectors(tokens, side="query"))


def test_state_that_does_not_fit_is_refused_by_name(tiny_bert):
    method = build(tiny_bert, "lora")
    state = method.state()
    name = next(iter(state))
    with pytest.raises(BundleError, match=f"missing .*{name}.*unexpected .*else"):
        method.load({"else": state[name]} | {n: t for n, t in state.items() if n != name})
    with pytest.raises(BundleError, match=r"expected shape \(2, 32\), got \(3, 3\)"):
        method.load(state | {name: torch.zeros(3, 3)})
    assert all(torch.equal(tensor, state[n]) for n, tensor in method.state().items())


def test_reparametrisation_starts_at_the_rows_and_folds_into_them(tiny_bert):
    rows = random_rows(tiny_bert.geometry, prompt_length=4, scale=1.0, seed=0)
    prompt = DeepPrompt(rows, reparametrisation=6)
    assert torch.equal(prompt.rows(), rows)
    with torch.no_grad():
        prompt.mlp[2].weight.normal_()
    folded = DeepPrompt(prompt.rows())
    torch.testing.assert_close(folded.attention().keys, prompt.attention().keys)
    torch.testing.assert_close(folded.attention().values, prompt.attention().values)
    assert not torch.equal(prompt.rows(), rows)
    assert repr(prompt).startswith("DeepPrompt(\n  layers=3, heads=4, prompt=4, head_dim=8")


def test_dropout_is_drawn_anew_in_training_and_absent_in_eval(tiny_bert):
    rows = torch.ones(3, 2, 4, 50, 8)
    prompt = DeepPrompt(rows, dropout=0.25)
    torch.manual_seed(0)
    one, other = prompt.attention(), prompt.attention()
    assert not torch.equal(one.keys, other.keys)
    assert one.keys.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert (one.keys == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    torch.manual_seed(0)
    assert torch.equal(prompt.attention().keys, one.keys), "the generator's state decides"
    prompt.eval()
    assert torch.equal(prompt.attention().keys, rows[:, 0].unsqueeze(1))


def test_shifted_policy_moves_positions_by_the_length_of_the_prompt():
    backbone = tiny_backbone()
    tokens = tokens_of(backbone)
    method = build(backbone, "deep-prompt", DeepPromptConfig(prompt_length=3, position="shifted"))
    segment = method.prompt("query").attention()
    expected = backbone.vectors(tokens, attention=segment, position_shift=3)
    assert torch.equal(method.vectors(tokens, side="query"), expected)
    assert not torch.equal(expected, backbone.vectors(tokens, attention=segment))


def test_weight_methods_of_a_checkpointed_backbone_train_their_own_copy():
    backbone = tiny_backbone()
    backbone.injection.enable_checkpointing()
    method = build(backbone, "full")
    tokens = tokens_of(backbone)
    method.vectors(tokens, side="query").pow(2).sum().backward()
    assert all(p.grad is None for p in backbone.model.parameters())
    inner = method.trained()["encoder.layer.1.attention.self.value.weight"]
    assert inner.grad is not None
    assert inner.grad.any()
