"""GradCache: exact gradients of a large batch with the memory of a small chunk."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

Chunk = TypeVar("Chunk")
Proceed = Callable[[Tensor], bool]


class GeneratorState:
    """A snapshot of the random generators, to replay a forward pass."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def restore(self) -> None:
        """Restore the snapshot."""
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda)


def is_finite(loss: Tensor) -> bool:
    """Check whether a loss is finite."""
    return bool(torch.isfinite(loss))


def backward_at_once(
    encode: Callable[[Chunk], Float[Tensor, "texts dim"]],
    chunks: Sequence[Chunk],
    loss_of: Callable[[list[Tensor]], Tensor],
    *,
    proceed: Proceed = is_finite,
) -> Tensor:
    """Encode all chunks, keeping their activations, and run one backward pass.

    Args:
        encode: Encodes a chunk, with gradients to the trainable parameters.
        loss_of: Computes the loss from all vectors, one tensor per chunk.
        proceed: Predicate on the loss: run the backward pass? All ranks must agree, otherwise
            they deadlock.

    Returns:
        The detached loss; gradients accumulate on the parameters.
    """
    loss = loss_of([encode(chunk) for chunk in chunks])
    if proceed(loss):
        loss.backward()
    return loss.detach()


def backward_in_chunks(
    encode: Callable[[Chunk], Float[Tensor, "texts dim"]],
    chunks: Sequence[Chunk],
    loss_of: Callable[[list[Tensor]], Tensor],
    *,
    proceed: Proceed = is_finite,
) -> Tensor:
    """Like :func:`backward_at_once`, but keep the activations of one chunk at a time.

    Every chunk but the last is encoded twice: first without a graph, to get all vectors and the
    loss's gradient with respect to them, then with a graph and the same random state, to
    backpropagate that gradient. The last chunk keeps its graph from the first pass.

    Args:
        encode: Encodes a chunk; called twice for each chunk but the last.
        loss_of: Computes the loss from all vectors, one tensor per chunk.
        proceed: As for :func:`backward_at_once`.

    Returns:
        The detached loss; gradients accumulate on the parameters.

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
