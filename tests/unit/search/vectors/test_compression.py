import numpy as np
import pytest

from dptdr.errors import VectorsError
from dptdr.search.exact import exact_top_k, top_k_of_blocks
from dptdr.search.vectors.compression import compress


@pytest.fixture
def queries(table):
    noise = np.random.default_rng(3).standard_normal((40, table.shape[1])) * 0.05
    return (table[:40] + noise).astype(np.float32)


def recall(table, queries, rows):
    _, exact = exact_top_k(queries, table, depth=10)
    return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, rows, strict=True)])


@pytest.mark.parametrize(
    ("compression", "bytes_per_vector", "extra", "least"),
    [
        ("float32", 32 * 4, 0, 1.0),
        ("float16", 32 * 2, 0, 0.99),
        ("int8", 32 + 4, 0, 0.95),
        ("binary", 4, 32 * 4, 0.3),
    ],
)
def test_bytes_are_counted_and_the_best_are_still_found(
    table, queries, compression, bytes_per_vector, extra, least
):
    small = compress(table, compression=compression)
    assert small.bytes == len(table) * bytes_per_vector + extra
    _, rows = top_k_of_blocks(queries, small.blocks(), depth=10)
    assert recall(table, queries, rows) >= least


def test_eight_bits_restore_every_number_within_half_a_step(table):
    small = compress(table, compression="int8")
    (_, restored), *_ = small.blocks()
    assert (np.abs(restored - table) <= small.scales[:, None] / 2 + 1e-7).all()


def test_a_vector_of_zeros_survives_every_compression():
    zeros = np.zeros((2, 8), dtype=np.float32)
    for compression in ("float16", "int8", "binary"):
        small = compress(zeros, compression=compression, dim=4)
        scores, _ = top_k_of_blocks(np.ones((1, 4), dtype=np.float32), small.blocks(), depth=1)
        assert np.isfinite(scores).all()


def test_fewer_dimensions_keep_the_length_of_the_vector():
    vectors = np.array([[3.0, 4.0, 0.0, 12.0]], dtype=np.float32)
    small = compress(vectors, dim=2)
    np.testing.assert_allclose(small.codes, [[3 / 5 * 13, 4 / 5 * 13]], rtol=1e-6)
    assert small.bytes == 8


@pytest.mark.parametrize("dim", [0, 5])
def test_dimensions_out_of_range_are_refused(dim):
    with pytest.raises(VectorsError, match=f"keep 1 to 4 dimensions, got {dim}"):
        compress(np.ones((1, 4), dtype=np.float32), dim=dim)
