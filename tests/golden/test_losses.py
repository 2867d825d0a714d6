"""Golden values of the losses.

made_by: Python's math module alone; each value is given beside its formula, with
lse(x...) = log(exp(x) + ...). The larger cases are compared with float64 loops over single cells.
"""

import math

import numpy as np
import pytest
import torch

from dptdr.training import losses

SCORES = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.5, 3.0, 1.5, -0.5]])
POSITIVE = torch.tensor([[True, False, False, False], [False, True, True, False]])
IGNORED = torch.tensor([[False, False, True, False], [False, False, False, False]])
TEACHER = torch.tensor([[5.0, 3.0, 0.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
SCORED = torch.tensor([[True, True, False, True], [False, False, False, False]])


def close(found, *expected):
    assert found.tolist() == pytest.approx(list(expected), rel=1e-6)


def test_contrastive_terms_one_and_several_positives():
    # Query 0: lse(2, 1, -1) - 2, column 2 being ignored. Query 1: the mean of lse(3, .5, -.5) - 3
    # and lse(1.5, .5, -.5) - 1.5: a positive is no negative of the other.
    made = losses.contrastive_terms(SCORES, positive=POSITIVE, ignored=IGNORED)
    close(made, 0.34901221676818617, 0.25701003436216807)


def test_contrastive_terms_where_a_cell_is_both_the_positive_counts():
    both = IGNORED | POSITIVE
    made = losses.contrastive_terms(SCORES, positive=POSITIVE, ignored=both)
    close(made, 0.34901221676818617, 0.25701003436216807)


def test_margin_mse_of_two_taught_negatives():
    # Margins of the student 1 and 3, of the teacher 2 and 1: ((1 - 2)^2 + (3 - 1)^2) / 2.
    made = losses.margin_mse_terms(SCORES, positive=POSITIVE, teacher=TEACHER, scored=SCORED)
    close(made, 2.5, 0.0)


def test_kl_over_taught_passages():
    # sum p (log p - log q) over columns 0, 1, 3; p = softmax(5, 3, 4), q = softmax(2, 1, -1).
    made = losses.kl_terms(SCORES, teacher=TEACHER, scored=SCORED)
    close(made, 0.34083262126302033, 0.0)


def test_kl_with_a_softened_teacher():
    # p = softmax(2.5, 1.5, 2).
    made = losses.kl_terms(SCORES, teacher=TEACHER / 2.0, scored=SCORED)
    close(made, 0.4367322604226975, 0.0)


def test_matryoshka_cut_is_scaled_to_length_one():
    vectors = torch.tensor([[3.0, 4.0, 12.0]])
    close(losses.cut_vectors(vectors, length=2, normalise=True)[0], 0.6, 0.8)
    close(losses.cut_vectors(vectors, length=2, normalise=False)[0], 3.0, 4.0)


def _random_case(seed):
    generator = np.random.default_rng(seed)
    queries, passages = generator.integers(1, 6), generator.integers(2, 9)
    scores = generator.normal(size=(queries, passages)) * 5
    positive = generator.random((queries, passages)) < 0.3
    positive[np.arange(queries), generator.integers(0, passages, queries)] = True
    ignored = generator.random((queries, passages)) < 0.3
    scored = generator.random((queries, passages)) < 0.6
    teacher = generator.normal(size=(queries, passages)) * 3
    return scores, positive, ignored, scored, teacher


@pytest.mark.parametrize("seed", range(20))
def test_losses_equal_loops_over_single_cells(seed):
    scores, positive, ignored, scored, teacher = _random_case(seed)
    contrastive, margin, divergence = [], [], []
    for row in range(len(scores)):
        cells = range(scores.shape[1])
        negatives = [scores[row, c] for c in cells if not positive[row, c] and not ignored[row, c]]
        own = [scores[row, c] for c in cells if positive[row, c]]
        contrastive.append(
            sum(math.log(sum(math.exp(s - p) for s in [p, *negatives])) for p in own) / len(own)
        )
        first = next(c for c in cells if positive[row, c])
        others = [c for c in cells if scored[row, c] and not positive[row, c]]
        errors = [
            (scores[row, first] - scores[row, c] - teacher[row, first] + teacher[row, c]) ** 2
            for c in others
        ]
        margin.append(sum(errors) / len(errors) if errors and scored[row, first] else 0.0)
        seen = [c for c in cells if scored[row, c]]
        if len(seen) < 2:
            divergence.append(0.0)
            continue
        total_p = sum(math.exp(teacher[row, c]) for c in seen)
        total_q = sum(math.exp(scores[row, c]) for c in seen)
        divergence.append(
            sum(
                math.exp(teacher[row, c])
                / total_p
                * (teacher[row, c] - math.log(total_p) - scores[row, c] + math.log(total_q))
                for c in seen
            )
        )
    tensors = {
        "scores": torch.tensor(scores, dtype=torch.float32),
        "positive": torch.tensor(positive),
        "ignored": torch.tensor(ignored),
        "scored": torch.tensor(scored),
        "teacher": torch.tensor(teacher, dtype=torch.float32),
    }

    def given(*names):
        return {name: tensors[name] for name in names}

    made = losses.contrastive_terms(tensors["scores"], **given("positive", "ignored"))
    assert made.numpy() == pytest.approx(contrastive, rel=1e-4, abs=1e-5)
    made = losses.margin_mse_terms(tensors["scores"], **given("positive", "teacher", "scored"))
    assert made.numpy() == pytest.approx(margin, rel=1e-4, abs=1e-4)
    made = losses.kl_terms(tensors["scores"], **given("teacher", "scored"))
    assert made.numpy() == pytest.approx(divergence, rel=1e-4, abs=1e-5)
