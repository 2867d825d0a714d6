import math

import numpy as np
import pytest
import torch

from dptdr.config.training import TrainingConfig
from dptdr.records import TrainingGroup
from dptdr.training.masks import InBatchCandidates, text_hash
from helpers.training import gradients, made_groups, made_method


@pytest.fixture(scope="module")
def method():
    return made_method("bitfit")


def objective(method, groups, **settings):
    from dptdr.training.objective import ContrastiveObjective

    return ContrastiveObjective(method, groups, TrainingConfig(**settings))


def expected_loss(method, groups, drawn, *, temperature=0.05, length=None):
    """The contrastive loss by loops over texts: drawn is (positives, negatives) per group."""
    from dptdr.model import Encoder

    encoder = Encoder(method.backbone, method=method)
    texts = list(dict.fromkeys(text for pair in drawn for side in pair for text in side))
    queries = encoder.encode_queries([g.query for g in groups]).astype(np.float64)
    passages = encoder.encode_passages(texts).astype(np.float64)
    if length is not None:
        queries, passages = queries[:, :length], passages[:, :length]
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        passages /= np.linalg.norm(passages, axis=1, keepdims=True)
    total = 0.0
    for row, group in enumerate(groups):
        scores = {text: queries[row] @ passages[c] / temperature for c, text in enumerate(texts)}
        rest = [math.exp(s) for text, s in scores.items() if text not in group.positives]
        found = [
            math.log((math.exp(scores[text]) + sum(rest)) / math.exp(scores[text]))
            for text in drawn[row][0]
        ]
        total += sum(found) / len(found)
    return total / len(groups)


def drawn_texts(objective, groups, items):
    """What a batch holds of each group, by the objective's own draw."""
    batch = objective.collect(items)
    positives = [tuple(batch.passages[c] for c in row.positive) for row in batch.rows]
    return batch, [
        (positive, tuple(t for t in group.negatives if t in batch.passages))
        for positive, group in zip(positives, groups, strict=True)
    ]


@pytest.mark.parametrize(
    "settings",
    [{}, {"negatives_per_query": 0}, {"negatives_per_query": 2, "positives_per_query": 2}],
)
def test_loss_equals_loops_over_texts(method, settings):
    groups = made_groups(5)
    made = objective(method, groups, batch_size=5, seed=5, **settings)
    items = made._items(0)
    ordered = [groups[item] for _, item in items]
    _, drawn = drawn_texts(made, ordered, items)
    loss, _ = gradients(method, groups, **settings)
    assert loss == pytest.approx(expected_loss(method, ordered, drawn), rel=1e-5)


def test_loss_with_shared_passages_and_known_positives_equals_loops_over_texts(method):
    # The passage "river stone" is everybody's; "dark boat" is positive for one query and negative
    # for another; the first and the last query are the same question with other positives.
    groups = [
        TrainingGroup("a", "red car", ("river stone", "dark boat"), ("old cat",)),
        TrainingGroup("b", "blue bird", ("green tree",), ("river stone", "dark boat")),
        TrainingGroup("c", "fast dog", ("river stone",), ("green tree",)),
    ]
    made = objective(method, groups, batch_size=3, seed=5, negatives_per_query=2)
    items = made._items(0)
    ordered = [groups[item] for _, item in items]
    batch, drawn = drawn_texts(made, ordered, items)
    assert len(set(batch.passages)) == len(batch.passages)
    loss, _ = gradients(method, groups, negatives_per_query=2)
    assert loss == pytest.approx(expected_loss(method, ordered, drawn), rel=1e-5)


def test_matryoshka_loss_is_the_mean_over_lengths(method):
    groups = made_groups(4)
    made = objective(method, groups, batch_size=4, seed=5)
    items = made._items(0)
    ordered = [groups[item] for _, item in items]
    _, drawn = drawn_texts(made, ordered, items)
    parts = [expected_loss(method, ordered, drawn, length=length) for length in (None, 16, 8)]
    loss, _ = gradients(method, groups, matryoshka=(8, 16))
    assert loss == pytest.approx(sum(parts) / 3, rel=1e-5)


@pytest.mark.parametrize("kind", ["kl", "margin-mse"])
def test_distillation_mixes_both_losses_by_its_weight(method, kind):
    groups = made_groups(4, scores=True)
    settings = {"negatives_per_query": 3, "distillation": kind}
    plain, _ = gradients(method, groups, negatives_per_query=3)
    taught, _ = gradients(method, groups, **settings, distillation_weight=1.0)
    mixed, _ = gradients(method, groups, **settings, distillation_weight=0.25)
    assert taught != pytest.approx(plain)
    assert mixed == pytest.approx(0.75 * plain + 0.25 * taught, rel=1e-5)


def test_distillation_reaches_the_teachers_cells(method):
    # One query, its own positive and negatives: the KL loss by hand from the vectors.
    from dptdr.model import Encoder

    group = made_groups(1, positives=1, scores=True)[0]
    loss, _ = gradients(
        method,
        [group],
        batch_size=2,
        negatives_per_query=3,
        distillation="kl",
        distillation_weight=1.0,
    )
    encoder = Encoder(method.backbone, method=method)
    texts = [*group.positives, *group.negatives]
    scores = encoder.encode_passages(texts) @ encoder.encode_queries([group.query])[0] / 0.05
    teacher = np.array([*group.positive_scores, *group.negative_scores])
    p = np.exp(teacher) / np.exp(teacher).sum()
    q = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    assert loss == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-4)


def test_mined_negatives_that_are_positives_are_left_out(method):
    group = TrainingGroup("a", "red car", ("river stone",), ("river stone", "old cat"))
    made = objective(method, [group], batch_size=2, negatives_per_query=2)
    assert made.collect([(0, 0)]).passages == ["river stone", "old cat"]


def test_the_same_question_twice_in_a_batch_knows_all_positives(method):
    groups = [
        TrainingGroup("a", "red car", ("river stone",)),
        TrainingGroup("b", "red car", ("old cat",)),
    ]
    made = objective(method, groups, batch_size=2)
    batch = made.share_known(made.collect([(0, 0), (0, 1)]))
    assert batch.rows[0].known == batch.rows[1].known
    assert len(batch.rows[0].known) == 2


def test_step_is_a_pure_function_of_its_number(method):
    groups = made_groups(6)
    first = gradients(method, groups, step=4, batch_size=3)
    torch.manual_seed(99)
    gradients(method, groups, step=1, batch_size=3)
    again = gradients(method, groups, step=4, batch_size=3)
    assert first[0] == again[0]
    assert torch.equal(first[1], again[1])


def test_statistics_count_texts_and_tokens_without_padding(method):
    groups = [
        TrainingGroup("a", "red car", ("river",)),
        TrainingGroup("b", "blue", ("stone garden house",)),
    ]
    stats = objective(method, groups, batch_size=2).backward(0)
    assert stats.texts == 4
    assert stats.tokens == 2 + 1 + 1 + 3 + 4 * 2  # Each text has [CLS] and [SEP].
    assert sorted(stats.query_ids) == ["a", "b"]


def test_pieces_hold_each_text_once_and_no_more_than_a_chunk(method):
    made = objective(method, made_groups(9), batch_size=9, mini_batch_size=4)
    batch = made.collect(made._items(0))
    pieces = made.micro_batches(batch)
    assert max(len(piece.rows) for piece in pieces) == 4
    for side, texts in (("query", batch.queries), ("passage", batch.passages)):
        places = sorted(place for p in pieces if p.side == side for place in p.places)
        assert places == list(range(len(texts)))


def test_loss_that_is_no_number_leaves_no_gradient_and_names_the_whole_batch():
    method = made_method("bitfit")
    with torch.no_grad():
        next(iter(method.trained().values())).fill_(math.nan)
    made = objective(method, made_groups(4), batch_size=4)
    for chunk in (0, 2):
        made = objective(method, made_groups(4), batch_size=4, mini_batch_size=chunk or None)
        stats = made.backward(0)
        assert math.isnan(stats.loss)
        assert sorted(stats.query_ids) == ["q0", "q1", "q2", "q3"]
        assert all(p.grad is None for p in method.trained().values())


def test_the_passage_that_a_query_is_itself_is_no_negative(method):
    groups = [
        TrainingGroup("a", "red", ("blue",), negatives=("red title",), own_passage="red title"),
        TrainingGroup("b", "green", ("red title",)),
    ]
    batch = objective(method, groups, batch_size=2).collect([(0, 0), (0, 1)])
    assert batch.passages == ["blue", "red title"]
    masks = InBatchCandidates([text_hash(text) for text in batch.passages]).masks(
        batch.rows, device=torch.device("cpu")
    )
    assert masks.ignored.tolist() == [[True, True], [False, True]]
