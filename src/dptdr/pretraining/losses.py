"""The span-contrastive loss as a pure function of vectors, siblings and owners."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

# Number of scores, with their gradients, in memory at a time.
_SCORES_PER_BLOCK = 1 << 21


def ignored_columns(
    rows: Int[Tensor, " rows"],
    *,
    siblings: Int[Tensor, " rows"],
    owners: Int[Tensor, " columns"],
) -> Bool[Tensor, "rows columns"]:
    """Mask each row's own column (``rows``) and columns from duplicates of its document.

    The sibling is never masked. ``owners`` identifies the columns' documents.
    """
    ignored = owners[rows].unsqueeze(1) == owners.unsqueeze(0)
    return ignored.scatter(1, siblings.unsqueeze(1), value=False)


def span_terms(
    vectors: Float[Tensor, "rows dim"],
    columns: Float[Tensor, "columns dim"],
    *,
    rows: Int[Tensor, " rows"],
    siblings: Int[Tensor, " rows"],
    owners: Int[Tensor, " columns"],
    temperature: float,
) -> Float[Tensor, " rows"]:
    """Compute each span's cross entropy over all spans in the batch, with its sibling as target.

    Args:
        columns: Vectors of all spans on all ranks.
        rows: Column of each span.
        siblings: Column of the other span of the same document.
        owners: Document of each column.
        temperature: Divides the dot products.

    Source:
        Gao and Callan, arXiv 2108.05540, equation 5. Differs: a temperature, for encoders with
        unit-length vectors; duplicates of a document are not negatives.
    """
    scores = vectors.float() @ columns.float().T / temperature
    ignored = ignored_columns(rows, siblings=siblings, owners=owners)
    return functional.cross_entropy(
        scores.masked_fill(ignored, float("-inf")), siblings, reduction="none"
    )


def span_loss(
    vectors: Float[Tensor, "rows dim"],
    columns: Float[Tensor, "columns dim"],
    *,
    rows: Int[Tensor, " rows"],
    siblings: Int[Tensor, " rows"],
    owners: Int[Tensor, " columns"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Sum :func:`span_terms` block by block, to bound memory."""
    size = max(1, _SCORES_PER_BLOCK // max(1, len(columns)))

    def block(part: Tensor, everything: Tensor, start: int) -> Tensor:
        chosen = slice(start, start + size)
        return span_terms(
            part,
            everything,
            rows=rows[chosen],
            siblings=siblings[chosen],
            owners=owners,
            temperature=temperature,
        ).sum()

    if size >= len(vectors):
        # A rank without rows still needs a backward path to the columns: other ranks wait for it.
        return block(vectors, columns, 0) if len(vectors) else vectors.sum() + 0.0 * columns.sum()
    parts = [
        checkpoint(block, vectors[start : start + size], columns, start, use_reentrant=False)
        for start in range(0, len(vectors), size)
    ]
    return torch.stack(parts).sum()


def sibling_ranks(
    vectors: Float[Tensor, "columns dim"],
    *,
    siblings: Int[Tensor, " columns"],
    owners: Int[Tensor, " columns"],
) -> Int[Tensor, " columns"]:
    """Rank each span's sibling, from 1; ties count against it."""
    rows = torch.arange(len(vectors), device=vectors.device)
    scores = vectors.float() @ vectors.float().T
    own = scores.gather(1, siblings.unsqueeze(1))
    ignored = ignored_columns(rows, siblings=siblings, owners=owners)
    return ((scores >= own) & ~ignored).sum(dim=1)
