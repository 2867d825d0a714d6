"""The deep prompt: trainable key and value rows in every layer."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dptdr.errors import BundleError
from dptdr.model.injection import Geometry
from dptdr.model.prompt_rows import AttentionRows, FeedForwardRows

_FFN = FeedForwardRows._fields


class DeepPrompt(nn.Module):
    """Trainable key and value rows in every layer, for one side.

    Args:
        rows: ``[layers, 2, heads, prompt, head_dim]``, keys before values on the second axis.
            ``prompt`` may be 0 if there are feed-forward rows.
        feed_forward: Rows for the feed-forward layers, with a ``texts`` axis of size 1; optional.
        dropout: Fraction of entries zeroed in each training pass.
        reparametrisation: Hidden size of an MLP whose output is added to the rows; 0 for none.

    Source:
        Liu et al., P-Tuning v2, arXiv 2110.07602, section 3. Differs: the MLP's output starts at
        zero and is added to the rows, so that it works with any initialisation.
    """

    ffn_keys: Tensor
    ffn_biases: Tensor
    ffn_values: Tensor

    def __init__(
        self,
        rows: Float[Tensor, "layers two heads prompt head_dim"],
        *,
        feed_forward: FeedForwardRows | None = None,
        dropout: float = 0.0,
        reparametrisation: int = 0,
    ) -> None:
        super().__init__()
        rows = rows.detach().float()
        self.ffn_length = 0 if feed_forward is None else feed_forward.keys.shape[2]
        if feed_forward is not None:
            for name, tensor in feed_forward._asdict().items():
                own = nn.Parameter(tensor[:, 0].detach().float().clone())
                self.register_parameter(f"ffn_{name}", own)
        self.keys = nn.Parameter(rows[:, 0].contiguous().clone())
        self.values = nn.Parameter(rows[:, 1].contiguous().clone())
        self.dropout = dropout
        self._kept: Tensor | None = None
        self._ffn_kept: Tensor | None = None
        self.mlp: nn.Sequential | None = None
        if reparametrisation:
            layers, _, heads, prompt, head_dim = rows.shape
            width = heads * head_dim
            self.embedding = nn.Parameter(torch.randn(prompt, width) * 0.02)
            last = nn.Linear(reparametrisation, layers * 2 * width)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.mlp = nn.Sequential(nn.Linear(width, reparametrisation), nn.Tanh(), last)

    @property
    def prompt_length(self) -> int:
        """Attention rows per layer."""
        return self.keys.shape[2]

    def state(self) -> dict[str, Tensor]:
        """Return the tensors to save: attention rows under ``""``, feed-forward rows by name."""
        state = {"": self.rows()} if self.prompt_length else {}
        if self.ffn_length:
            state.update({f"ffn_{name}": getattr(self, f"ffn_{name}") for name in _FFN})
        return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}

    def rows(self) -> Float[Tensor, "layers two heads prompt head_dim"]:
        """Return the attention rows, including the MLP's output."""
        rows = torch.stack([self.keys, self.values], dim=1)
        if self.mlp is None:
            return rows
        layers, _, heads, prompt, head_dim = rows.shape
        made: Tensor = self.mlp(self.embedding).view(prompt, layers, 2, heads, head_dim)
        return rows + made.permute(1, 2, 3, 0, 4)

    def draw_dropout(self, seed: int) -> None:
        """Draw the dropout mask for the next training passes from a seed alone.

        All passes, chunks and processes of a step then see the same prompt. Without this call, each
        pass draws from torch's global generator.

        Args:
            seed: For example derived from the run's seed and the step.
        """
        if self.dropout:
            generator = torch.Generator().manual_seed(seed)
            self._kept = self._draw(self.keys, generator)
            if self.ffn_length:
                self._ffn_kept = self._draw(self.ffn_values, generator)

    def _draw(self, like: Tensor, generator: torch.Generator | None) -> Float[Tensor, "two ..."]:
        """Draw dropout factors for keys and values."""
        drawn = torch.rand((2, *like.shape), generator=generator) >= self.dropout
        return (drawn / (1.0 - self.dropout)).to(like.device)

    def feed_forward(self) -> FeedForwardRows | None:
        """Return the feed-forward rows, shared by the whole batch."""
        if not self.ffn_length:
            return None
        keys, values = self.ffn_keys, self.ffn_values
        if self.training and self.dropout:
            kept = self._draw(values, None) if self._ffn_kept is None else self._ffn_kept
            keys, values = keys * kept[0], values * kept[1]
        return FeedForwardRows(keys.unsqueeze(1), self.ffn_biases.unsqueeze(1), values.unsqueeze(1))

    def attention(self) -> AttentionRows | None:
        """Return the attention rows, shared by the whole batch."""
        if not self.prompt_length:
            return None
        keys: Tensor = self.keys
        values: Tensor = self.values
        if self.mlp is not None:
            rows = self.rows()
            keys, values = rows[:, 0], rows[:, 1]
        if self.training and self.dropout:
            kept = self._draw(keys, None) if self._kept is None else self._kept
            keys, values = keys * kept[0], values * kept[1]
        return AttentionRows(keys.unsqueeze(1), values.unsqueeze(1))

    def extra_repr(self) -> str:
        """Show the prompt's shape in ``print``."""
        layers, heads, prompt, head_dim = self.keys.shape
        shape = f"layers={layers}, heads={heads}, prompt={prompt}, head_dim={head_dim}"
        return f"{shape}, ffn={self.ffn_length}"


def random_rows(
    geometry: Geometry, *, prompt_length: int, scale: float, seed: int
) -> Float[Tensor, "layers two heads prompt head_dim"]:
    """Draw normally distributed rows from a seed."""
    generator = torch.Generator().manual_seed(seed)
    shape = (geometry.layers, 2, geometry.heads, prompt_length, geometry.head_dim)
    return torch.randn(shape, generator=generator) * scale


def _check_rows(rows: Tensor, *, geometry: Geometry) -> None:
    expected = (geometry.layers, 2, geometry.heads, "prompt", geometry.head_dim)
    shape = tuple(rows.shape)
    fits = len(shape) == 5 and all(
        want in ("prompt", have) for want, have in zip(expected, shape, strict=True)
    )
    if not fits:
        raise BundleError(f"expected prompt rows of shape {expected}, got {shape}")


def prompts_in(state: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the prompts in a saved state."""
    return {name.split(".")[0] for name in state}


def saved_rows(
    state: Mapping[str, Tensor], name: str, *, geometry: Geometry, dim: int
) -> tuple[Float[Tensor, "layers two heads prompt head_dim"], FeedForwardRows | None]:
    """Extract one prompt's rows from a saved state, checking shapes against a backbone.

    Args:
        name: Prompt name: ``shared``, ``query`` or ``passage``.

    Returns:
        Attention rows (possibly zero of them), and feed-forward rows or ``None``.

    Raises:
        BundleError: If a shape does not match, or tensors are missing.
    """
    empty = torch.zeros(geometry.layers, 2, geometry.heads, 0, geometry.head_dim)
    rows = state.get(name, empty).float()
    _check_rows(rows, geometry=geometry)
    parts = {part: state.get(f"{name}.ffn_{part}") for part in _FFN}
    found = {part: tensor.float() for part, tensor in parts.items() if tensor is not None}
    if not found:
        if not rows.shape[3]:
            raise BundleError(f"prompt '{name}': expected at least one row, got none")
        return rows, None
    if len(found) != len(_FFN):
        raise BundleError(
            f"prompt '{name}': the feed-forward rows lack {sorted(set(_FFN) - set(found))}"
        )
    length = found["biases"].shape[-1]
    expected = {
        "keys": (geometry.layers, length, dim),
        "biases": (geometry.layers, length),
        "values": (geometry.layers, length, dim),
    }
    for part, shape in expected.items():
        if tuple(found[part].shape) != shape or not length:
            raise BundleError(
                f"prompt '{name}': expected feed-forward {part} of shape "
                f"{(geometry.layers, 'rows', dim)[: len(shape)]}, got {tuple(found[part].shape)}"
            )
    return rows, FeedForwardRows(**{part: tensor.unsqueeze(1) for part, tensor in found.items()})
