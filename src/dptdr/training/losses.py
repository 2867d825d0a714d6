"""Losses as pure functions of scores and masks.

``scores`` are the dot products of queries and passages, each passage once, in float32. ``positive``
is ``[queries, passages]``, true for a query's positives. ``ignored`` is ``[queries, passages]``,
true for passages excluded from a query's loss: other known positives and duplicate passages.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional


def contrastive_terms(
    scores: Float[Tensor, "queries passages"],
    *,
    positive: Bool[Tensor, "queries passages"],
    ignored: Bool[Tensor, "queries passages"],
) -> Float[Tensor, " queries"]:
    """Compute each query's cross entropy over its positives and all counted negatives.

    With several positives, each is contrasted with the negatives only, not with other positives,
    and their mean is returned.

    Args:
        positive: Positives of each query; at least one per row.
        ignored: Cells to exclude; ``positive`` takes precedence.

    Source:
        Karpukhin et al., arXiv 2004.04906, equation 2. Differs: known positives and duplicates are
        masked, and several positives are averaged.
    """
    scores = scores.float()
    negatives = scores.masked_fill(positive | ignored, float("-inf"))
    # log(sum over negatives): -inf for a query without negatives, whose loss is then 0.
    rest = torch.logsumexp(negatives, dim=1, keepdim=True)
    losses = torch.logaddexp(scores, rest) - scores
    losses = losses.masked_fill(~positive, 0.0)
    return losses.sum(dim=1) / positive.sum(dim=1).clamp(min=1)


def margin_mse_terms(
    scores: Float[Tensor, "queries passages"],
    *,
    positive: Bool[Tensor, "queries passages"],
    teacher: Float[Tensor, "queries passages"],
    scored: Bool[Tensor, "queries passages"],
) -> Float[Tensor, " queries"]:
    """Compute each query's squared error of the margins between positive and negatives.

    Args:
        positive: Positives; the first in each row is used.
        teacher: Teacher scores, valid where ``scored``.

    Returns:
        One loss per query, 0 if the teacher has not scored its positive.

    Source:
        Hofstaetter et al., arXiv 2010.02666, equation 4.
    """
    first = positive.int().argmax(dim=1, keepdim=True)
    student_margin = scores.gather(1, first) - scores
    teacher_margin = teacher.gather(1, first) - teacher
    counted = scored & ~positive & scored.gather(1, first)
    errors = (student_margin - teacher_margin).square().masked_fill(~counted, 0.0)
    return errors.sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def kl_terms(
    scores: Float[Tensor, "queries passages"],
    *,
    teacher: Float[Tensor, "queries passages"],
    scored: Bool[Tensor, "queries passages"],
) -> Float[Tensor, " queries"]:
    """Compute each query's KL divergence from the teacher's distribution over scored passages.

    Args:
        teacher: Teacher scores, valid where ``scored``.
        scored: Cells scored by the teacher; rows with fewer than two give 0.

    Source:
        Hinton et al., arXiv 1503.02531, section 2, as used by Lin et al., arXiv 2010.11386.
    """
    enough = scored.sum(dim=1) >= 2
    # Rows without teacher scores get uniform ones, which keeps NaN out of the gradient.
    mask = torch.where(enough[:, None], scored, torch.ones_like(scored))
    lowest = torch.finfo(torch.float32).min
    target = teacher.float().masked_fill(~mask, lowest)
    student = scores.float().masked_fill(~mask, lowest)
    divergence = functional.kl_div(
        functional.log_softmax(student, dim=1),
        functional.log_softmax(target, dim=1),
        reduction="none",
        log_target=True,
    )
    return divergence.masked_fill(~mask, 0.0).sum(dim=1) * enough


def cut_vectors(
    vectors: Float[Tensor, "texts dim"], *, length: int, normalise: bool
) -> Float[Tensor, "texts length"]:
    """Truncate vectors, and rescale them to unit length if the encoder normalises.

    Source:
        Kusupati et al., Matryoshka representation learning, arXiv 2205.13147.
    """
    cut = vectors[:, :length]
    return functional.normalize(cut, dim=-1) if normalise else cut


def matryoshka_lengths(lengths: Sequence[int], *, dim: int) -> list[int]:
    """Return the dimensions to train on, the full one first.

    Raises:
        ValueError: If a dimension is not below the full one.
    """
    for length in lengths:
        if not 1 <= length < dim:
            raise ValueError(
                f"matryoshka: expected dimensions between 1 and {dim - 1}, got {length}"
            )
    return [dim, *sorted(set(lengths), reverse=True)]
