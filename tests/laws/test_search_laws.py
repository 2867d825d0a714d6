import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dptdr.search.exact import exact_top_k


@settings(deadline=None, max_examples=60)
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
