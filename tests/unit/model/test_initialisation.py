"""Prompts that start from real tokens."""

import pytest
import torch

from dptdr.config.methods import DeepPromptConfig
from dptdr.model import MethodFactory
from dptdr.model.initialisation import token_rows

TEXTS = ["How do bees find their way home?", "The old house by the river", "car"]


def keys_and_values(backbone, text):
    """[layers, 2, heads, tokens, head_dim] from the outputs of the projections themselves."""
    made = []
    handles = []
    for layer in backbone.model.encoder.layer:
        attention = layer.attention.self
        for projection in (attention.key, attention.value):
            handles.append(
                projection.register_forward_hook(lambda _, __, output: made.append(output[0]))
            )
    tokens = backbone.pad(backbone.tokenize([text], side="query"))
    backbone.model(input_ids=tokens.ids, attention_mask=tokens.mask)
    for handle in handles:
        handle.remove()
    geometry = backbone.geometry
    stacked = torch.stack(made).view(geometry.layers, 2, -1, geometry.heads, geometry.head_dim)
    return stacked.transpose(2, 3)


def test_rows_are_the_keys_and_values_of_one_token_in_all_layers(minilm):
    rows = token_rows(minilm, TEXTS, prompt_length=9, side="query", seed=1)
    assert rows.shape == (6, 2, 12, 9, 32)
    found = torch.cat([keys_and_values(minilm, text) for text in TEXTS], dim=3)
    for number in range(9):
        apart = (found - rows[:, :, :, number : number + 1]).abs().amax(dim=(0, 1, 2, 4))
        assert apart.min() < 1e-4, f"row {number} must be one token's"


def test_rows_are_spread_over_the_texts_and_decided_by_the_seed(minilm):
    def rows(seed, length=6):
        return token_rows(minilm, TEXTS, prompt_length=length, side="query", seed=seed)

    assert torch.equal(rows(1), rows(1))
    assert not torch.equal(rows(1), rows(2))
    owners = []
    for text in TEXTS:
        own = keys_and_values(minilm, text)
        apart = (rows(1)[..., :, None, :] - own[..., None, :, :]).abs().amax(dim=(0, 1, 2, 5))
        owners.append(int((apart.amin(dim=1) < 1e-4).sum()))
    assert owners == [2, 2, 2]


def test_more_rows_than_texts_and_fewer_both_work(minilm):
    for length in (1, 2, 3, 40):
        rows = token_rows(minilm, TEXTS, prompt_length=length, side="query", seed=0)
        assert rows.shape[3] == length


def test_no_text_is_refused(minilm):
    with pytest.raises(ValueError, match="texts: expected at least one"):
        token_rows(minilm, [], prompt_length=2, side="query", seed=0)


def test_tied_prompts_start_from_both_sides_and_others_from_their_own(minilm):
    def start(sharing):
        config = DeepPromptConfig(prompt_length=4, sharing=sharing)
        factory = MethodFactory(query_texts=TEXTS[:1], passage_texts=TEXTS[1:2])
        return factory.build("deep-prompt", minilm, config, seed=0).state()

    def owners(rows, text):
        own = keys_and_values(minilm, text)
        apart = (rows[..., :, None, :] - own[..., None, :, :]).abs().amax(dim=(0, 1, 2, 5))
        return int((apart.amin(dim=1) < 1e-4).sum())

    tied = start("tied")["shared"]
    assert (owners(tied, TEXTS[0]), owners(tied, TEXTS[1])) == (2, 2)
    query_only = start("query-only")["shared"]
    assert owners(query_only, TEXTS[0]) == 4
    untied = start("untied")
    assert owners(untied["query"], TEXTS[0]) == 4
    assert owners(untied["passage"], TEXTS[1]) == 4
