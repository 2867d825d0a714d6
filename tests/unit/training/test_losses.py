import pytest
import torch

from dptdr.training import losses


def test_a_query_whose_passages_are_all_masked_has_no_loss_and_no_gradient():
    scores = torch.tensor([[1.0, 2.0], [3.0, 1.0]], requires_grad=True)
    positive = torch.tensor([[True, False], [True, False]])
    ignored = torch.tensor([[False, True], [False, False]])
    terms = losses.contrastive_terms(scores, positive=positive, ignored=ignored)
    terms.sum().backward()
    assert terms[0] == 0.0
    assert terms[1] > 0.0
    assert scores.grad[0].tolist() == [0.0, 0.0]
    assert torch.isfinite(scores.grad).all()


def test_ignored_passages_get_no_gradient():
    scores = torch.randn(3, 5, requires_grad=True)
    positive = torch.eye(3, 5, dtype=torch.bool)
    ignored = torch.zeros(3, 5, dtype=torch.bool)
    ignored[:, 4] = True
    losses.contrastive_terms(scores, positive=positive, ignored=ignored).sum().backward()
    assert scores.grad[:, 4].tolist() == [0.0, 0.0, 0.0]
    assert (scores.grad[:, :3] != 0).all()


def test_kl_of_untaught_rows_gives_no_gradient():
    scores = torch.randn(2, 4, requires_grad=True)
    scored = torch.tensor([[True, False, False, False], [True, True, False, True]])
    losses.kl_terms(scores, teacher=torch.randn(2, 4), scored=scored).sum().backward()
    assert scores.grad[0].tolist() == [0.0] * 4
    assert scores.grad[1, 2] == 0.0
    assert (scores.grad[1, [0, 1, 3]] != 0).all()


def test_kl_of_a_student_like_its_teacher_is_zero():
    scores = torch.randn(3, 4)
    scored = torch.ones(3, 4, dtype=torch.bool)
    assert losses.kl_terms(scores, teacher=scores + 7.0, scored=scored).abs().max() < 1e-6


def test_margin_mse_without_a_taught_positive_is_zero():
    terms = losses.margin_mse_terms(
        torch.randn(1, 3),
        positive=torch.tensor([[True, False, False]]),
        teacher=torch.randn(1, 3),
        scored=torch.tensor([[False, True, True]]),
    )
    assert terms.tolist() == [0.0]


def test_matryoshka_lengths_begin_with_the_full_one():
    assert losses.matryoshka_lengths((8, 16, 8), dim=32) == [32, 16, 8]


@pytest.mark.parametrize("length", [0, 32, 40])
def test_matryoshka_length_that_is_not_shorter_is_refused(length):
    with pytest.raises(ValueError, match=f"expected dimensions between 1 and 31, got {length}"):
        losses.matryoshka_lengths((length,), dim=32)
