"""The deep prompt: trained key and value rows for every layer."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dptdr.model.injection import Geometry
from dptdr.model.segments import Segment


class DeepPrompt(nn.Module):
    """Key and value rows of every layer for one side.

    Args:
        rows: ``[layers, 2, heads, prompt, head_dim]``; index 0 of the second axis holds keys.
        joint: Whether the prompt shares the tokens' softmax.
        dropout: Share of numbers set to 0 in each training pass.
        reparametrisation: Width of the MLP that is added to the rows while training, 0 for none.

    Source:
        Liu et al., P-Tuning v2, arXiv 2110.07602, section 3. Differs: the MLP starts at zero and
        its output is added to the rows, so that every initialisation works with it.
    """

    def __init__(
        self,
        rows: Float[Tensor, "layers two heads prompt head_dim"],
        *,
        joint: bool = True,
        dropout: float = 0.0,
        reparametrisation: int = 0,
    ) -> None:
        super().__init__()
        rows = rows.detach().float()
        self.keys = nn.Parameter(rows[:, 0].contiguous().clone())
        self.values = nn.Parameter(rows[:, 1].contiguous().clone())
        self.joint = joint
        self.dropout = dropout
        self._kept: Tensor | None = None
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
        """Rows per layer."""
        return self.keys.shape[2]

    def rows(self) -> Float[Tensor, "layers two heads prompt head_dim"]:
        """Return the rows as they enter attention, the MLP folded in."""
        rows = torch.stack([self.keys, self.values], dim=1)
        if self.mlp is None:
            return rows
        layers, _, heads, prompt, head_dim = rows.shape
        made: Tensor = self.mlp(self.embedding).view(prompt, layers, 2, heads, head_dim)
        return rows + made.permute(1, 2, 3, 0, 4)

    def draw_dropout(self, seed: int) -> None:
        """Fix what dropout does in the coming training passes, as a function of the seed alone.

        However a step's texts are cut into passes, chunks and processes, they then meet the same
        prompt. Without this call each pass draws anew from torch's generator.

        Args:
            seed: Such as one drawn from the run's seed and the step.
        """
        if self.dropout:
            self._kept = self._draw(torch.Generator().manual_seed(seed))

    def _draw(self, generator: torch.Generator | None) -> Float[Tensor, "two ..."]:
        """Return factors on keys and values: 0, or what makes up for the numbers dropped."""
        drawn = torch.rand((2, *self.keys.shape), generator=generator) >= self.dropout
        return (drawn / (1.0 - self.dropout)).to(self.keys.device)

    def segment(self) -> Segment:
        """Return the rows as one segment shared by all texts of a batch."""
        keys: Tensor = self.keys
        values: Tensor = self.values
        if self.mlp is not None:
            rows = self.rows()
            keys, values = rows[:, 0], rows[:, 1]
        if self.training and self.dropout:
            kept = self._draw(None) if self._kept is None else self._kept
            keys, values = keys * kept[0], values * kept[1]
        return Segment(keys.unsqueeze(1), values.unsqueeze(1), joint=self.joint)

    def extra_repr(self) -> str:
        """Say the prompt's shape in ``print``."""
        layers, heads, prompt, head_dim = self.keys.shape
        return f"layers={layers}, heads={heads}, prompt={prompt}, head_dim={head_dim}"


def random_rows(
    geometry: Geometry, *, prompt_length: int, scale: float, seed: int
) -> Float[Tensor, "layers two heads prompt head_dim"]:
    """Return normally distributed rows, a function of the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    shape = (geometry.layers, 2, geometry.heads, prompt_length, geometry.head_dim)
    return torch.randn(shape, generator=generator) * scale


def check_rows(rows: Tensor, *, geometry: Geometry) -> None:
    """Refuse rows that do not fit a backbone.

    Raises:
        ValueError: If the shape is not ``[layers, 2, heads, prompt, head_dim]`` of the backbone.
    """
    expected = (geometry.layers, 2, geometry.heads, "prompt", geometry.head_dim)
    shape = tuple(rows.shape)
    fits = len(shape) == 5 and all(
        want in ("prompt", have) for want, have in zip(expected, shape, strict=True)
    )
    if not fits or shape[3] < 1:
        raise ValueError(f"expected prompt rows of shape {expected}, got {shape}")
