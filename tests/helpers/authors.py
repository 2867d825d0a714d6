"""Checkpoints in the layout of the authors' saved models, and their forward pass written by hand.

Nothing here uses the package. The forward pass reads the very tensors of the checkpoint: RoBERTa's
embeddings with positions moved by the prompt's length, and in every layer the prompt's keys and
values before those of the tokens.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from helpers.tiny import tiny_model, tiny_tokenizer

EPSILON = 1e-12


def save_authors(
    folder: Path,
    *,
    prompt: int = 6,
    projection: int = 0,
    untied: bool = False,
    beginning: str = "roberta.",
    seed: int = 0,
) -> dict[str, dict[str, Tensor]]:
    """Write a checkpoint and return its weights by folder name (``""`` where there is one)."""
    model = tiny_model("roberta", seed=seed)
    config = model.config
    width = config.num_hidden_layers * 2 * config.hidden_size
    found = {}
    for number, side in enumerate(("query_model", "passage_model") if untied else ("",)):
        generator = torch.Generator().manual_seed(100 + number)

        def draw(*shape, generator=generator):
            return torch.randn(shape, generator=generator) * 0.5

        state = {f"{beginning}{name}": tensor for name, tensor in model.state_dict().items()}
        state = {name: tensor.clone() for name, tensor in state.items() if "pooler" not in name}
        state[f"{beginning}embeddings.position_ids"] = torch.arange(80)[None]
        if projection:
            size = config.hidden_size
            state["prefix_encoder.embedding.weight"] = draw(prompt, size)
            state["prefix_encoder.trans.0.weight"] = draw(projection, size)
            state["prefix_encoder.trans.0.bias"] = draw(projection)
            state["prefix_encoder.trans.2.weight"] = draw(width, projection)
            state["prefix_encoder.trans.2.bias"] = draw(width)
        else:
            state["prefix_encoder.embedding.weight"] = draw(prompt, width)
        at = folder / side
        at.mkdir(parents=True, exist_ok=True)
        torch.save(state, at / "pytorch_model.bin")
        settings = config.to_dict() | {
            "architectures": ["RobertaPrefixModel"],
            "pre_seq_len": prompt,
            "prefix_projection": bool(projection),
            "prefix_hidden_size": projection or 512,
        }
        (at / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        found[side] = state
    tiny_tokenizer().save_pretrained(folder)
    return found


def authors_vectors(
    state: dict[str, Tensor], ids: Tensor, mask: Tensor, *, heads: int = 4, padding: int = 1
) -> Tensor:
    """First token's last state, as the checkpoint's own program computes it."""
    body = {name.removeprefix("roberta."): tensor for name, tensor in state.items()}
    layers = 1 + max(int(name.split(".")[2]) for name in body if name.startswith("encoder.layer"))
    matrix = _matrix(body)
    prompt, size = matrix.shape[0], body["embeddings.word_embeddings.weight"].shape[1] // heads
    positions = (torch.cumsum(mask, 1) + prompt) * mask + padding
    states = (
        body["embeddings.word_embeddings.weight"][ids]
        + body["embeddings.position_embeddings.weight"][positions]
        + body["embeddings.token_type_embeddings.weight"][0]
    )
    states = _norm(states, body, "embeddings.LayerNorm")
    seen = torch.cat([torch.ones(ids.shape[0], prompt), mask.float()], dim=1)
    hidden = (1.0 - seen)[:, None, None] * -1e30
    texts, tokens, width = states.shape
    for layer in range(layers):
        at = f"encoder.layer.{layer}."
        columns = matrix[:, layer * 2 * width : (layer + 1) * 2 * width]

        def cut(rows):
            return rows.reshape(rows.shape[0], -1, heads, size).transpose(1, 2)

        query = cut(_linear(states, body, at + "attention.self.query"))
        key = cut(_linear(states, body, at + "attention.self.key"))
        value = cut(_linear(states, body, at + "attention.self.value"))
        prompt_key = cut(columns[None, :, :width].expand(texts, -1, -1))
        prompt_value = cut(columns[None, :, width:].expand(texts, -1, -1))
        key = torch.cat([prompt_key, key], dim=2)
        value = torch.cat([prompt_value, value], dim=2)
        weights = torch.softmax(query @ key.transpose(-1, -2) / size**0.5 + hidden, dim=-1)
        mixed = (weights @ value).transpose(1, 2).reshape(texts, tokens, width)
        mixed = _linear(mixed, body, at + "attention.output.dense")
        states = _norm(mixed + states, body, at + "attention.output.LayerNorm")
        inner = _linear(states, body, at + "intermediate.dense")
        inner = 0.5 * inner * (1.0 + torch.erf(inner / 2.0**0.5))
        inner = _linear(inner, body, at + "output.dense")
        states = _norm(inner + states, body, at + "output.LayerNorm")
    return states[:, 0]


def _matrix(body: dict[str, Tensor]) -> Tensor:
    rows = body["prefix_encoder.embedding.weight"]
    if "prefix_encoder.trans.0.weight" not in body:
        return rows
    rows = torch.tanh(_linear(rows, body, "prefix_encoder.trans.0"))
    return _linear(rows, body, "prefix_encoder.trans.2")


def _linear(states: Tensor, body: dict[str, Tensor], name: str) -> Tensor:
    return states @ body[f"{name}.weight"].T + body[f"{name}.bias"]


def _norm(states: Tensor, body: dict[str, Tensor], name: str) -> Tensor:
    mean = states.mean(-1, keepdim=True)
    variance = ((states - mean) ** 2).mean(-1, keepdim=True)
    scaled = (states - mean) / torch.sqrt(variance + EPSILON)
    return scaled * body[f"{name}.weight"] + body[f"{name}.bias"]
