"""Small pieces of training: groups of made-up texts, methods on tiny encoders, their gradients."""

import numpy as np
import torch

from dptdr.config.methods import (
    DeepPromptConfig,
    EmptyConfig,
    LoraConfig,
    ShallowPromptConfig,
)
from dptdr.config.training import TrainingConfig
from dptdr.model import MethodFactory
from dptdr.records import TrainingGroup
from dptdr.training.objective import ContrastiveObjective
from helpers.tasks import WORDS
from helpers.tiny import tiny_backbone

METHODS = {
    "deep-prompt": DeepPromptConfig(prompt_length=3, dropout=0.3),
    "shallow-prompt": ShallowPromptConfig(prompt_length=3),
    "lora": LoraConfig(rank=2),
    "bitfit": EmptyConfig(),
    "full": EmptyConfig(),
}


def sentence(generator, *, most=12):
    return " ".join(generator.choice(WORDS, size=int(generator.integers(1, most))))


def made_groups(count=10, *, negatives=3, positives=2, seed=0, scores=False):
    """Training groups of random words; every text is different."""
    generator = np.random.default_rng(seed)

    def texts(kind, row, number):
        return tuple(f"{sentence(generator)} {kind} {row} {n}" for n in range(number))

    groups = []
    for row in range(count):
        group = TrainingGroup(
            query_id=f"q{row}",
            query=f"{sentence(generator)} {row}",
            positives=texts("right", row, positives),
            negatives=texts("wrong", row, negatives),
        )
        if scores:
            group = group._replace(
                positive_scores=tuple(generator.normal(size=positives) + 2),
                negative_scores=tuple(generator.normal(size=negatives)),
            )
        groups.append(group)
    return groups


def made_method(name, *, config=None, backbone=None, seed=3):
    """A method on a tiny encoder, ready to train, with all it trains away from zero."""
    from dptdr.training.train import set_training_mode

    backbone = backbone or tiny_backbone("bert", normalise=True)
    texts = [f"{word} river stone" for word in WORDS[:8]]
    factory = MethodFactory(query_texts=texts, passage_texts=texts)
    method = factory.build(name, backbone, config or METHODS[name], seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in method.trained().values():
            # LoRA starts at zero, where half of its gradients are zero too.
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    set_training_mode(method)
    return method


def gradients(method, groups, *, step=0, world=None, **settings):
    """The loss of a step, and the gradient of all parameters as one vector."""
    settings = {"batch_size": len(groups), "seed": 5} | settings
    for parameter in method.trained().values():
        parameter.grad = None
    objective = ContrastiveObjective(method, groups, TrainingConfig(**settings), world=world)
    stats = objective.backward(step)
    parts = [p.grad.reshape(-1) for p in method.trained().values() if p.grad is not None]
    return stats.loss, torch.cat(parts).double() if parts else torch.zeros(0)


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())
