"""Bundles and prompts for the serving tests."""

import random
from pathlib import Path

import torch

from dptdr.config.methods import DeepPromptConfig
from dptdr.model import Backbone, DeepPrompt, Encoder, Limits
from dptdr.model.bundle import save_task
from dptdr.model.methods import DeepPromptMethod
from dptdr.serving.packing import PromptRows
from helpers.tiny import WORDS


def random_rows(backbone: Backbone, length: int, *, joint: bool = True, seed: int = 0):
    """Prompt rows of a served task."""
    geometry = backbone.geometry
    generator = torch.Generator().manual_seed(seed)
    shape = (2, geometry.layers, length, geometry.heads, geometry.head_dim)
    keys, values = torch.randn(shape, generator=generator)
    return PromptRows(keys, values, joint=joint)


def sentence(words: int, *, seed: int = 0) -> str:
    """A text of so many words."""
    generator = random.Random(seed)
    return " ".join(generator.choice(WORDS) for _ in range(words))


def task_encoder(
    backbone: Backbone, *, seed: int = 0, scale: float = 1.0, limits: Limits | None = None, **config
) -> Encoder:
    """An encoder with a random deep prompt: as good as a trained one for equality."""
    settings = {"prompt_length": 4, "initialisation": "random"} | config
    method = DeepPromptMethod(backbone, DeepPromptConfig(**settings), seed=seed)
    for number, name in enumerate(sorted(method.module)):
        old: DeepPrompt = method.module[name]
        generator = torch.Generator().manual_seed(1000 * seed + number)
        rows = torch.randn(old.rows().shape, generator=generator) * scale
        method.module[name] = DeepPrompt(rows, joint=settings.get("attention", "joint") == "joint")
    return Encoder(backbone, method=method, limits=limits)


def write_bundle(path: Path, backbone: Backbone, **options) -> Path:
    """Write a bundle with a random deep prompt."""
    save_task(path, task_encoder(backbone, **options), name=path.name)
    return path
