"""Prompt tuning at the input layer, as a baseline."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dptdr.config.methods import MethodName, ShallowPromptConfig
from dptdr.errors import ConfigError
from dptdr.model.backbone import Backbone, Side, Tokens
from dptdr.model.prompt_rows import Observer
from dptdr.model.weights import copy_parameters


class ShallowPromptMethod:
    """Prompt tuning at the input: trainable rows prepended to the word embeddings.

    Raises:
        ConfigError: If the prompt leaves no room for text.

    Source:
        Lester et al., arXiv 2104.08691: rows are initialised from random vocabulary embeddings.
    """

    name: MethodName = "shallow-prompt"

    def __init__(self, backbone: Backbone, config: ShallowPromptConfig, *, seed: int = 0) -> None:
        if not 1 <= config.prompt_length < backbone.pooling.max_tokens:
            raise ConfigError(
                f"prompt_length: expected 1 to {backbone.pooling.max_tokens - 1}, got "
                f"{config.prompt_length}; a longer prompt leaves no room for text"
            )
        self.backbone = backbone
        self.config: ShallowPromptConfig = config
        self.base_fingerprint = backbone.fingerprint
        self.base_probe = backbone.probe
        words: Tensor = backbone.model.get_input_embeddings().weight.detach().float()
        generator = torch.Generator().manual_seed(seed)
        names = ("query", "passage") if config.sharing == "untied" else ("shared",)
        rows = {}
        for name in names:
            chosen = torch.randint(0, words.shape[0], (config.prompt_length,), generator=generator)
            rows[name] = nn.Parameter(words[chosen.to(words.device)].clone())
        self.module: nn.Module = nn.ParameterDict(rows).to(backbone.device)

    def _rows(self, side: Side) -> Tensor | None:
        rows: Any = self.module
        if self.config.sharing == "untied":
            return rows[side]  # type: ignore[no-any-return]
        if self.config.sharing == "query-only" and side == "passage":
            return None
        return rows["shared"]  # type: ignore[no-any-return]

    @property
    def max_tokens(self) -> int:
        """Longest text beside the prompt."""
        return self.backbone.pooling.max_tokens - self.config.prompt_length

    def vectors(
        self, tokens: Tokens, *, side: Side, observer: Observer | None = None
    ) -> Float[Tensor, "texts dim"]:
        """Encode each text into one vector."""
        rows = self._rows(side)
        room = self.backbone.pooling.max_tokens
        # Bundles of earlier versions have limits without regard to the prompt.
        if rows is not None and tokens.ids.shape[1] + rows.shape[0] > room:
            keep = room - rows.shape[0]
            tokens = Tokens(tokens.ids[:, :keep], tokens.mask[:, :keep])
        return self.backbone.vectors(tokens, prefix_embeddings=rows, observer=observer)

    def changes(self, side: Side) -> bool:
        """Check whether this side has a prompt."""
        return self._rows(side) is not None

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the trainable prompt rows by name."""
        return dict(self.module.named_parameters())

    def state(self) -> dict[str, Tensor]:
        """Return a CPU copy of the prompt rows."""
        return {name: p.detach().cpu().contiguous() for name, p in self.trained().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load saved prompt rows."""
        copy_parameters(self.trained(), state)
