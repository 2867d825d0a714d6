import pytest

from dptdr.errors import VectorsError
from dptdr.search.indexes.types import (
    INDEX_TYPES,
    IndexType,
    available_memory,
    choose_type,
    find_type,
    pq_parts,
)


@pytest.mark.parametrize(
    ("count", "memory", "kind", "reason"),
    [
        (50_000, 10, "exact", "up to 50,000 passages, and there are 50,000"),
        (1_000_000, 10**10, "hnsw", "1,000,000 passages with 384 dimensions need 1.8 GB as hnsw"),
        (1_000_000, 10**9, "hnsw-sq", "too large: hnsw 1.8 GB"),
        (1_000_000, 5 * 10**8, "ivf-sq", "need 392.0 MB as ivf-sq, out of 500.0 MB"),
        (1_000_000, 10**8, "rabitq", "need 64.0 MB as rabitq"),
        (1_000_000, 10**6, "rabitq", "exceeds the 1.0 MB"),
    ],
)
def test_auto_takes_the_first_kind_that_fits_and_says_why(count, memory, kind, reason):
    choice = choose_type(count, 384, memory_bytes=memory)
    assert choice.index_type == kind
    assert reason in choice.reason


def test_auto_knows_a_type_from_its_entry_alone(monkeypatch):
    codes = IndexType("codes", "one byte each", memory_bytes=lambda n, d: n)
    monkeypatch.setitem(INDEX_TYPES, "codes", codes)
    assert choose_type(1_000_000, 384, memory_bytes=10**7).index_type == "codes"
    assert choose_type(1_000_000, 384, memory_bytes=10**8).index_type == "rabitq"


def test_the_types_for_auto_take_less_and_less_memory():
    sizes = [t.memory_bytes(10**6, 384) for t in INDEX_TYPES.values() if t.automatic]
    assert sizes == sorted(sizes, reverse=True)


def test_an_unknown_kind_lists_the_known_ones():
    with pytest.raises(
        VectorsError, match=r"one of the index types exact, hnsw, .*rabitq, got 'annoy'"
    ):
        find_type("annoy")


@pytest.mark.parametrize(("dim", "parts"), [(384, 48), (768, 96), (10, 1), (16, 2), (100, 20)])
def test_product_codes_cut_the_vector_into_equal_parts(dim, parts):
    assert pq_parts(dim) == parts
    assert dim % parts == 0


def test_memory_of_a_kind_is_the_sum_of_vectors_and_links():
    assert INDEX_TYPES["hnsw"].memory_bytes(1, 384) == 384 * 4 + 2 * 32 * 4 + 16


def test_available_memory_is_some():
    assert available_memory() > 10**7
