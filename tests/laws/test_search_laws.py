import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dptdr.search.exact import exact_top_k
from dptdr.search.indexes.row_index import ExactRows
from dptdr.search.vectors.folder import VectorFolder


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    passages=st.integers(1, 40),
    depth=st.integers(1, 50),
    block_rows=st.integers(1, 45),
)
def test_exact_search_equals_a_full_stable_sort_whatever_the_block(
    seed, passages, depth, block_rows
):
    generator = np.random.default_rng(seed)
    # Small integers: products are exact in single precision and ties are common.
    vectors = generator.integers(-2, 3, size=(passages, 3)).astype(np.float32)
    queries = generator.integers(-2, 3, size=(4, 3)).astype(np.float32)
    scores, rows = exact_top_k(queries, vectors, depth=depth, block_rows=block_rows)
    everything = queries @ vectors.T
    expected = np.argsort(-everything, axis=1, kind="stable")[:, :depth]
    assert rows.tolist() == expected.tolist()
    assert scores.tolist() == np.take_along_axis(everything, expected, axis=1).tolist()


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    shards=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    depth=st.integers(1, 12),
)
def test_exact_rows_of_a_folder_equal_a_full_stable_sort(seed, shards, depth):
    generator = np.random.default_rng(seed)
    count = sum(shards)
    # Small integers: products are exact in single precision and ties are common.
    vectors = generator.integers(-1, 2, size=(count, 3)).astype(np.float32)
    queries = generator.integers(-1, 2, size=(4, 3)).astype(np.float32)
    cuts = np.cumsum([0, *shards])

    class Folder(VectorFolder):
        def __init__(self):
            """Stand for a folder on disk."""

        def blocks(self):
            for start, end in itertools.pairwise(cuts.tolist()):
                yield start, vectors[start:end]

    depth = min(depth, count)
    scores, rows = ExactRows(Folder()).search(queries, depth=depth, allowed=None)
    expected = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :depth]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(scores, np.take_along_axis(queries @ vectors.T, expected, axis=1))
