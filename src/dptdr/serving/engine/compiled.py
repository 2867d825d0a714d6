"""Padded batches through ``torch.compile``: one graph for all tasks, mixtures and lengths."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from dptdr.errors import BackboneError
from dptdr.model.backbone import Backbone
from dptdr.model.segments import Segment
from dptdr.serving.engine.forward import TOLERANCE, Forward, Row, gather
from dptdr.serving.packing import PromptRows

_FEWEST_TEXTS = 2
"""Sizes of 1 would be compiled apart, so that no batch is smaller and no prompt is shorter."""


class CompiledForward(Forward):
    """Runs padded batches through a compiled model.

    Every batch carries joint rows, invisible ones where no text has a prompt, so that batches with
    and without prompts are one graph. A second graph serves batches in which a prompt has a
    softmax of its own. Both are made here, so that no request waits for a compiler. Texts with
    shifted positions go through the model as it is.

    Args:
        backbone: The server's own backbone.
        compiler: Backend of ``torch.compile``.

    Raises:
        BackboneError: If the compiler is missing or fails, or gives other vectors.
    """

    def __init__(
        self, backbone: Backbone, *, compiler: str | Callable[..., Any] = "inductor"
    ) -> None:
        super().__init__(backbone, layout="padded", ordered=False)
        # The backbone itself stays as it is: it is the reference of all checks.
        self._compiled = copy.copy(backbone)
        self._compiled.injection = copy.copy(backbone.injection)
        self._compiled.injection.compile(fullgraph=True, dynamic=True, backend=compiler)
        for kinds in ((), (True,), (True, False)):
            self._prove(kinds)

    def vectors(
        self, rows: Sequence[Row], *, merge: bool | None = None
    ) -> Float[Tensor, "texts dim"]:
        """Return one float32 vector per row, in the given order.

        Args:
            rows: The texts, each with at least one token.
            merge: Has no meaning here.

        Returns:
            The vectors.
        """
        del merge
        with torch.inference_mode():
            vectors = torch.empty(len(rows), self.backbone.dim, device=self.backbone.device)
            moved = [i for i, r in enumerate(rows) if r.prompt is not None and r.prompt.shift]
            if moved:
                vectors[torch.tensor(moved)] = super().vectors([rows[i] for i in moved])
            places = sorted(set(range(len(rows))) - set(moved))
            if places:
                vectors[torch.tensor(places)] = self._run([rows[i] for i in places])
            return vectors

    def _run(self, rows: list[Row]) -> Float[Tensor, "texts dim"]:
        filled = rows + [rows[0]] * (_FEWEST_TEXTS - len(rows))
        tokens = self.backbone.pad([row.ids for row in filled])
        prompts = self._segments([row.prompt for row in filled])
        _of_any_size(tokens.ids, tokens.mask, places=(0, 1))
        for segment in prompts:
            _of_any_size(segment.keys, segment.values, places=(1, 3))
            _of_any_size(cast("Tensor", segment.visible), places=(0, 1))
        return self._compiled.vectors(tokens, prompts=prompts)[: len(rows)]

    def _segments(self, prompts: list[PromptRows | None]) -> tuple[Segment, ...]:
        """Return one joint segment, and an added one where it is needed, with rows per text."""
        geometry = self.backbone.geometry
        parameter: Tensor = next(self.backbone.model.parameters())
        shape = (geometry.layers, 2, geometry.heads, geometry.head_dim)
        made = []
        for joint in (True, False):
            nothing = PromptRows(parameter.new_zeros(shape), parameter.new_zeros(shape), joint)
            own = [p if p is not None and p.joint == joint else None for p in prompts]
            if not joint and not any(own):
                continue
            # One more text sees rows of no meaning: it brings the shape, and is cut off again.
            segment = gather([*own, nothing])[0]
            visible = cast("Tensor", segment.visible)
            made.append(
                Segment(segment.keys[:, :-1], segment.values[:, :-1], visible[:-1], joint=joint)
            )
        return tuple(made)

    def _prove(self, kinds: tuple[bool, ...]) -> None:
        """Compile for prompts of some kinds, and compare with the model as it is."""
        generator = torch.Generator().manual_seed(len(kinds))
        geometry = self.backbone.geometry
        parameter: Tensor = next(self.backbone.model.parameters())
        prompts: list[PromptRows | None] = [None]
        for joint in kinds:
            shape = (2, geometry.layers, 3 + joint, geometry.heads, geometry.head_dim)
            keys, values = torch.randn(shape, generator=generator).to(parameter)
            prompts.append(PromptRows(keys, values, joint=joint))
        texts = ([5, 6, 7, 8, 9], [5, 6], [9, 8, 7], [6, 7, 8, 9])
        rows = [Row(ids, prompts[n % len(prompts)]) for n, ids in enumerate(texts)]
        try:
            made = self.vectors(rows)
        except Exception as error:
            reason = str(error).strip().splitlines()
            raise BackboneError(
                f"backbone '{self.backbone.name}' cannot be compiled: "
                f"{reason[0] if reason else type(error).__name__}; is there a C++ compiler? serve "
                "without --compile"
            ) from error
        expected = torch.stack([self.single(row) for row in rows])
        scale = max(1.0, float(expected.norm(dim=1).max()))
        difference = float((made - expected).abs().max()) / scale
        if not difference <= TOLERANCE:
            raise BackboneError(
                f"backbone '{self.backbone.name}': compiled vectors differ from others by "
                f"{difference:.1e}; serve without --compile"
            )


def _of_any_size(*tensors: Tensor, places: tuple[int, int]) -> None:
    """Keep the compiler from making a graph for the first sizes that it sees."""
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, places)
