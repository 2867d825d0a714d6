"""GradCache: the gradient of a large batch in the memory of a small chunk."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

Chunk = TypeVar("Chunk")
Proceed = Callable[[Tensor], bool]


class GeneratorState:
    """The state of the random generators before a forward pass, to repeat it."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def restore(self) -> None:
        """Restore the generators."""
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda)


def is_finite(loss: Tensor) -> bool:
    """Return whether a loss is a finite number."""
    return bool(torch.isfinite(loss))


def whole_backward(
    encode: Callable[[Chunk], Float[Tensor, "texts dim"]],
    chunks: Sequence[Chunk],
    loss_of: Callable[[list[Tensor]], Tensor],
    *,
    proceed: Proceed = is_finite,
) -> Tensor:
    """Encode all chunks with their activations kept, and run one backward pass.

    Args:
        encode: Turns a chunk into vectors, with gradients to the trained parameters.
        loss_of: The loss of all vectors, one tensor per chunk.
        proceed: Predicate on the loss: run the backward pass? All ranks must agree, otherwise
            they deadlock.

    Returns:
        The loss, detached; gradients are added to the parameters'.
    """
    loss = loss_of([encode(chunk) for chunk in chunks])
    if proceed(loss):
        loss.backward()
    return loss.detach()


def cached_backward(
    encode: Callable[[Chunk], Float[Tensor, "texts dim"]],
    chunks: Sequence[Chunk],
    loss_of: Callable[[list[Tensor]], Tensor],
    *,
    proceed: Proceed = is_finite,
) -> Tensor:
    """Do what :func:`whole_backward` does with the activations of one chunk at a time.

    Every chunk but the last is encoded twice: first without a graph, to know all vectors and the
    loss's gradient on them; then with one, under the same random numbers, to carry that gradient
    on. The last chunk keeps its graph from the first pass.

    Args:
        encode: Turns a chunk into vectors; called twice with each chunk but the last.
        loss_of: The loss of all vectors, one tensor per chunk.
        proceed: As for :func:`whole_backward`.

    Returns:
        The loss, detached; gradients are added to the parameters'.

    Source:
        Gao et al., arXiv 2101.06983, section 3.2. Differs: the last chunk is encoded once.
    """
    *cached, last = chunks
    states: list[GeneratorState] = []
    leaves: list[Tensor] = []
    with torch.no_grad():
        for chunk in cached:
            states.append(GeneratorState())
            leaves.append(encode(chunk).detach())
    kept = encode(last)
    after = GeneratorState()
    leaves.append(kept.detach())
    for leaf in leaves:
        leaf.requires_grad_()
    loss = loss_of(leaves)
    if not proceed(loss):
        return loss.detach()
    loss.backward()
    kept.backward(leaves[-1].grad)
    del kept
    for chunk, state, leaf in zip(cached, states, leaves[:-1], strict=True):
        state.restore()
        encode(chunk).backward(leaf.grad)
    after.restore()
    return loss.detach()
