"""PEFT's own prefix tuning behind dptdr's method protocol, so that it trains by the same loop."""

import copy
from collections.abc import Mapping
from typing import Any


class PeftPrefix:
    """Prefix tuning as PEFT does it, through the encoder's cache of keys and values.

    Args:
        backbone: The frozen encoder; its model is copied.
        prompt_length: Number of virtual tokens.
        seed: Decides the start; PEFT draws it from a normal distribution.

    Raises:
        RuntimeError: If the prefix moves no vector of this encoder, which PEFT does not notice.
    """

    name = "deep-prompt"

    def __init__(self, backbone: Any, *, prompt_length: int, seed: int) -> None:
        import peft
        import torch

        from dptdr.config.methods import NoConfig

        model = copy.deepcopy(backbone.model)
        model.set_attn_implementation("sdpa")
        torch.manual_seed(seed)
        settings = peft.PrefixTuningConfig(
            task_type=peft.TaskType.FEATURE_EXTRACTION, num_virtual_tokens=prompt_length
        )
        self.backbone = backbone
        self.base_fingerprint = backbone.fingerprint
        self.config = NoConfig()
        self.module = peft.get_peft_model(model, settings)
        tokens = backbone.pad(backbone.tokenize(["one text"], side="query"))
        with torch.no_grad():
            moved = (self.vectors(tokens, side="query") - backbone.vectors(tokens)).abs().max()
        if not float(moved) > 1e-4:
            raise RuntimeError(f"PEFT's prefix has no effect on {type(backbone.model).__name__}")

    def vectors(self, tokens: Any, *, side: str, observer: Any = None) -> Any:
        """Return one vector per text."""
        from dptdr.model.pooling import pool_states

        del side, observer
        states = self.module(input_ids=tokens.ids, attention_mask=tokens.mask).last_hidden_state
        return pool_states(states, tokens.mask, pooling=self.backbone.pooling)

    def changes(self, side: str) -> bool:
        """Both sides have the prefix."""
        del side
        return True

    def trained(self) -> dict[str, Any]:
        """Return the prefix."""
        return {n: p for n, p in self.module.named_parameters() if p.requires_grad}

    def state(self) -> dict[str, Any]:
        """Return a copy of the prefix."""
        return {n: p.detach().clone() for n, p in self.trained().items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a saved prefix."""
        import torch

        with torch.no_grad():
            for name, parameter in self.trained().items():
                parameter.copy_(state[name])


def train_peft_prefix(
    backbone: Any, data: Any, config: Any, *, prompt_length: int
) -> tuple[PeftPrefix, dict[int, float], float]:
    """Train by dptdr's objective and loop, and keep the step that is best on dev.

    Args:
        backbone: The frozen encoder.
        data: What `load_data` returns.
        config: Training settings; ``learning_rate`` must be given.
        prompt_length: Number of virtual tokens.

    Returns:
        The trained prefix, dev nDCG@10 by step, and seconds of training without evaluations.
    """
    import time

    from dptdr.model import Encoder
    from dptdr.training.loop import Trainable, evaluation_steps
    from dptdr.training.objective import ContrastiveObjective
    from dptdr.training.selection import dev_measures

    method = PeftPrefix(backbone, prompt_length=prompt_length, seed=config.seed)
    method.module.eval()
    objective: Any = ContrastiveObjective(method, data.groups, config, score_scale=1.0)
    trainable = Trainable(method.trained(), config, rate=config.learning_rate)
    due = set(evaluation_steps(config))
    history: dict[int, float] = {}
    states, seconds = {}, 0.0
    for step in range(config.steps):
        began = time.monotonic()
        trainable.forget_gradients()
        objective.backward(step)
        trainable.clip()
        trainable.update(step)
        seconds += time.monotonic() - began
        if step + 1 in due:
            encoder: Any = Encoder(backbone, method=method)
            history[step + 1] = dev_measures(encoder, data.dev, measure="nDCG@10")["nDCG@10"]
            states[step + 1] = method.state()
    method.load(states[max(history, key=lambda step: history[step])])
    return method, history, seconds
