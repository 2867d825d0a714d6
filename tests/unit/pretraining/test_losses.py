import math

import pytest
import torch

from dptdr.pretraining import losses
from dptdr.pretraining.losses import ignored_columns, sibling_ranks, span_loss, span_terms


def pairs(count):
    rows = torch.arange(2 * count)
    return rows, rows + 1 - 2 * (rows % 2), rows // 2


def test_span_terms_are_the_papers_cross_entropy_over_raw_dot_products():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(6, 4, generator=generator)
    rows, siblings, owners = pairs(3)
    found = span_terms(
        vectors, vectors, rows=rows, siblings=siblings, owners=owners, temperature=1.0
    )
    for i in range(6):
        scores = [float(vectors[i] @ vectors[j]) for j in range(6)]
        below = sum(math.exp(scores[j]) for j in range(6) if j != i)
        assert float(found[i]) == pytest.approx(
            -math.log(math.exp(scores[int(siblings[i])]) / below), rel=1e-5
        )


def test_temperature_divides_the_scores():
    vectors = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    rows, siblings, owners = pairs(2)
    known = {"rows": rows, "siblings": siblings, "owners": owners}
    warm = span_terms(vectors, vectors, temperature=0.25, **known)
    scaled = span_terms(2 * vectors, 2 * vectors, temperature=1.0, **known)
    torch.testing.assert_close(warm, scaled)


def test_second_copy_of_a_document_is_no_negative():
    rows, siblings, owners = pairs(3)
    owners[4:] = owners[0]
    ignored = ignored_columns(rows, siblings=siblings, owners=owners)
    assert ignored[0].tolist() == [True, False, False, False, True, True]
    assert ignored[2].tolist() == [False, False, True, False, False, False]


def test_a_single_pair_costs_nothing():
    rows, siblings, owners = pairs(1)
    known = {"rows": rows, "siblings": siblings, "owners": owners}
    vectors = torch.randn(2, 3)
    assert float(span_loss(vectors, vectors, temperature=1.0, **known)) == 0.0


def test_blocks_change_neither_loss_nor_gradient(monkeypatch):
    rows, siblings, owners = pairs(7)
    known = {"rows": rows, "siblings": siblings, "owners": owners, "temperature": 0.5}
    found = []
    for size in (1 << 21, 40):
        monkeypatch.setattr(losses, "_SCORES_PER_BLOCK", size)
        vectors = torch.randn(14, 5, generator=torch.Generator().manual_seed(2)).requires_grad_()
        loss = span_loss(vectors, vectors, **known)
        loss.backward()
        found.append((loss.detach(), vectors.grad))
    torch.testing.assert_close(found[0], found[1])


def test_ranks_count_equal_scores_against_the_sibling():
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    _, siblings, owners = pairs(2)
    assert sibling_ranks(vectors, siblings=siblings, owners=owners).tolist() == [2, 2, 3, 3]
