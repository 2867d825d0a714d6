"""GradCache: the gradient of a large batch in the memory of a small chunk."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

Chunk = TypeVar("Chunk")


class GeneratorState:
    """The random generators' state before a forward pass, to run the same pass again."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def restore(self) -> None:
        """Set the generators back."""
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda)


def whole_backward(
    encode: Callable[[Chunk], Float[Tensor, "texts dim"]],
    chunks: Sequence[Chunk],
    loss_of: Callable[[list[Tensor]], Tensor],
) -> Tensor:
    """Encode all chunks with their activations kept, and run one backward pass.

    Args:
        encode: Turns a chunk into vectors, with gradients to the trained parameters.
        chunks: The batch in pieces.
        loss_of: The loss of all vectors, one tensor per chunk.

    Returns:
        The loss, detached; gradients are added to the parameters'.
    """
    loss = loss_of([encode(chunk) for chunk in chunks])
    if torch.isfinite(loss):
        loss.backward()
    return loss.detach()


def cached_backward(
    encode: Callable[[Chunk], Float[Tensor, "texts dim"]],
    chunks: Sequence[Chunk],
    loss_of: Callable[[list[Tensor]], Tensor],
) -> Tensor:
    """Do what :func:`whole_backward` does with the activations of one chunk at a time.

    Every chunk is encoded twice: first without a graph, to know all vectors and the loss's
    gradient on them; then with one, under the same random numbers, to carry that gradient on.

    Args:
        encode: Turns a chunk into vectors; called twice with each chunk.
        chunks: The batch in pieces.
        loss_of: The loss of all vectors, one tensor per chunk.

    Returns:
        The loss, detached; gradients are added to the parameters'.

    Source:
        Gao et al., arXiv 2101.06983, section 3.2. Differs: nothing.
    """
    states: list[GeneratorState] = []
    leaves: list[Tensor] = []
    with torch.no_grad():
        for chunk in chunks:
            states.append(GeneratorState())
            leaves.append(encode(chunk).detach())
    for leaf in leaves:
        leaf.requires_grad_()
    loss = loss_of(leaves)
    if not torch.isfinite(loss):
        return loss.detach()
    loss.backward()
    after = GeneratorState()
    for chunk, state, leaf in zip(chunks, states, leaves, strict=True):
        if leaf.grad is None:
            continue
        state.restore()
        encode(chunk).backward(leaf.grad)
    after.restore()
    return loss.detach()
