import torch

from dptdr.model.packing import plan
from helpers.serving import random_rows


def test_plan_runs_cover_the_row_and_join_texts_of_equal_length(served):
    a, b = random_rows(served.backbone, 2, seed=1), random_rows(served.backbone, 2, seed=2)

    blocks, groups = plan([4, 4, 7, 40, 40, 3], [None, None, None, a, a, b])

    assert [(r.start, r.stop, r.texts, r.tokens) for r in blocks] == [
        (0, 8, 2, 4),
        (8, 15, 1, 7),
        (15, 95, 2, 40),
        (95, 98, 1, 3),
    ]
    assert [r.prompt for r in blocks] == [None, None, a, b]
    assert groups == ()


def test_plan_short_texts_of_one_task_are_merged_long_ones_joined(served):
    a, b = random_rows(served.backbone, 2, seed=1), random_rows(served.backbone, 2, seed=2)

    blocks, groups = plan([5, 6, 60, 60], [a, a, b, b])

    assert [(g.start, g.stop) for g in groups] == [(0, 11)]
    assert groups[0].prompt is a
    assert [r.prompt for r in blocks] == [None, None, b]


def test_rows_bytes_count_keys_and_values(served):
    rows = random_rows(served.backbone, 5)

    assert rows.bytes == 2 * 3 * 5 * 32 * 4
    assert rows.prompt_length == 5
    assert rows.keys.dtype == torch.float32
