import numpy as np
import pytest

from dptdr.errors import VectorsError
from dptdr.search.exact import exact_top_k


def test_scores_and_rows_by_hand():
    queries = np.array([[1.0, 0.0], [0.0, 2.0]], dtype=np.float32)
    passages = np.array([[3.0, 1.0], [-1.0, 4.0], [2.0, 0.5]], dtype=np.float32)
    scores, rows = exact_top_k(queries, passages, depth=2)
    assert rows.tolist() == [[0, 2], [1, 0]]
    assert scores.tolist() == [[3.0, 2.0], [8.0, 2.0]]
    assert scores.dtype == np.float32
    assert rows.dtype == np.int64


@pytest.mark.parametrize("block_rows", [1, 2, 3, 4, 100])
def test_equal_scores_take_the_lower_row_first_across_blocks(block_rows):
    passages = np.ones((7, 3), dtype=np.float32)
    passages[5] = 2.0
    _, rows = exact_top_k(
        np.ones((1, 3), dtype=np.float32), passages, depth=4, block_rows=block_rows
    )
    assert rows.tolist() == [[5, 0, 1, 2]]


def test_depth_beyond_the_passages_gives_all_of_them():
    passages = np.eye(3, dtype=np.float32)
    scores, rows = exact_top_k(np.array([[1, 3, 2]], dtype=np.float32), passages, depth=10)
    assert rows.tolist() == [[1, 2, 0]]
    assert scores.shape == (1, 3)


def test_no_queries_and_no_passages_give_empty_arrays():
    nothing = np.empty((0, 4), dtype=np.float32)
    some = np.ones((2, 4), dtype=np.float32)
    assert exact_top_k(nothing, some, depth=2)[0].shape[0] == 0
    assert exact_top_k(some, nothing, depth=2)[1].shape == (2, 0)


def test_half_precision_passages_are_scored_in_single_precision():
    generator = np.random.default_rng(0)
    passages = generator.standard_normal((50, 8)).astype(np.float16)
    queries = generator.standard_normal((3, 8)).astype(np.float32)
    scores, _ = exact_top_k(queries, passages, depth=1)
    expected = (queries @ passages.astype(np.float32).T).max(axis=1)
    np.testing.assert_allclose(scores[:, 0], expected, rtol=1e-6)


def test_memory_mapped_passages_are_searched(tmp_path):
    vectors = np.random.default_rng(1).standard_normal((40, 4)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    _, rows = exact_top_k(vectors[:2], mapped, depth=3, block_rows=16)
    assert rows[:, 0].tolist() == np.argmax(vectors[:2] @ vectors.T, axis=1).tolist()


def test_nan_in_a_passage_names_its_row():
    passages = np.ones((5, 2), dtype=np.float32)
    passages[3, 1] = np.nan
    with pytest.raises(VectorsError, match=r"passage row 3 contains NaN"):
        exact_top_k(np.ones((1, 2), dtype=np.float32), passages, depth=1, block_rows=2)


def test_nan_in_a_query_names_its_row():
    queries = np.ones((3, 2), dtype=np.float32)
    queries[2, 0] = np.nan
    with pytest.raises(VectorsError, match=r"query row 2 contains NaN"):
        exact_top_k(queries, np.ones((2, 2), dtype=np.float32), depth=1)


def test_a_depth_below_one_is_refused():
    some = np.ones((2, 2), dtype=np.float32)
    with pytest.raises(ValueError, match="depth of at least 1, got 0"):
        exact_top_k(some, some, depth=0)
