"""Index types implemented with faiss."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float32, Int64

from dptdr.errors import VectorsError
from dptdr.search.exact import TopK
from dptdr.search.indexes.quantized import ShortVectors
from dptdr.search.indexes.types import pq_parts
from dptdr.search.vectors.folder import VectorFolder

# The type stubs of faiss do not match its API.
faiss: Any = importlib.import_module("faiss")

Vectors: TypeAlias = VectorFolder | ShortVectors

_TRAINING_ROWS_PER_LIST = 64
_MOST_TRAINING_ROWS = 262_144


@dataclass(frozen=True, kw_only=True)
class FaissSettings:
    """Settings for building and searching a faiss index."""

    M: int = 32
    """Links per passage in the graph."""
    ef_construction: int = 100
    """Candidate list size while building the graph."""
    ef_search: int = 96
    """Candidate list size while searching the graph; raised to the depth if smaller."""
    nlist: int | None = None
    """Number of inverted lists; by default 4 times the square root of the passage count, at most a
    39th of it."""
    nprobe: int | None = None
    """Inverted lists probed per query; by default ``nlist / 12``, at least 8."""
    seed: int = 1234
    """Seed for the training sample, the clusters and the random rotation."""
    threads: int = 0
    """Number of build threads, 0 for all cores. Builds are byte-for-byte reproducible with 1; with
    more, the graph's links depend on thread scheduling."""


class FaissRows:
    """A faiss index over the rows of a vector folder."""

    def __init__(self, index: Any, settings: FaissSettings) -> None:
        self.index = index
        self.settings = settings
        inner = index
        self.pretransformed = isinstance(index, faiss.IndexPreTransform)
        if self.pretransformed:
            inner = faiss.downcast_index(index.index)
        self.graph = isinstance(inner, faiss.IndexHNSW)
        self.rabitq = isinstance(inner, faiss.IndexIVFRaBitQ)
        self.nlist = 0 if self.graph else int(inner.nlist)
        # Creating parameters costs as much as a small search, so cache them by depth.
        self._usual: dict[int, Any] = {}

    @classmethod
    def build(
        cls,
        folder: Vectors,
        index_type: str,
        *,
        settings: FaissSettings,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> "FaissRows":
        """Build an index over all rows of a folder."""
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(settings.threads or threads)
        try:
            nlist = settings.nlist or _default_nlist(folder.count)
            index = _empty_index(index_type, folder.dim, settings=settings, nlist=nlist)
            if not index.is_trained:
                index.train(_training_rows(folder, nlist=nlist, seed=settings.seed))
            for start, block in folder.blocks():
                index.add(np.ascontiguousarray(block, dtype=np.float32))
                if on_progress is not None:
                    on_progress(start + len(block), folder.count)
        finally:
            faiss.omp_set_num_threads(threads)
        return cls(index, settings)

    @classmethod
    def load(
        cls, path: Path, index_type: str, *, settings: FaissSettings, count: int, dim: int
    ) -> "FaissRows":
        """Read an index from a file and check its type, count and dimension.

        Raises:
            VectorsError: If faiss cannot read it, or a check fails.
        """
        try:
            index = faiss.read_index(str(path))
        except (RuntimeError, MemoryError) as error:
            raise VectorsError(
                f"{path}: faiss cannot read it ({_reason(error)}); rebuild the index"
            ) from None
        if not _is_of_type(index, index_type) or (index.ntotal, index.d) != (count, dim):
            raise VectorsError(
                f"{path}: expected {count} vectors of dimension {dim} as {index_type}, got "
                f"{index.ntotal} of {index.d} as {type(index).__name__}; rebuild the index"
            )
        return cls(index, settings)

    def save(self, path: Path) -> None:
        """Write the index to a file.

        Raises:
            VectorsError: If it cannot be written.
        """
        try:
            faiss.write_index(self.index, str(path))
        except RuntimeError as error:
            raise VectorsError(
                f"{path}: cannot write the index ({_reason(error)}); free disk space and retry"
            ) from None

    def search(
        self,
        vectors: Float32[np.ndarray, "queries dim"],
        *,
        depth: int,
        allowed: Int64[np.ndarray, " rows"] | None,
    ) -> TopK:
        """Return the best rows; see :class:`dptdr.search.indexes.row_index.RowIndex`."""
        if allowed is None:
            if depth not in self._usual:
                self._usual[depth] = self._parameters(depth, None)
            scores, rows = self.index.search(vectors, depth, params=self._usual[depth])
            return scores, rows
        bits = np.zeros(self.index.ntotal, dtype=bool)
        bits[allowed] = True
        packed = np.packbits(bits, bitorder="little")
        # Filtering leaves fewer hits: widen the search in proportion, up to a bound.
        wider = min(8.0, self.index.ntotal / max(1, len(allowed)))
        selector = faiss.IDSelectorBitmap(packed)
        parameters = self._parameters(int(depth * wider), selector, wider=wider)
        scores, rows = self.index.search(vectors, depth, params=parameters)
        return scores, rows

    def _parameters(self, depth: int, selector: Any, *, wider: float = 1.0) -> Any:
        options = {} if selector is None else {"sel": selector}
        if self.graph:
            width = max(int(self.settings.ef_search * wider), depth)
            return faiss.SearchParametersHNSW(efSearch=width, **options)
        nprobe = self.settings.nprobe or max(8, self.nlist // 12)
        nprobe = min(self.nlist, int(nprobe * wider))
        make = faiss.IVFRaBitQSearchParameters if self.rabitq else faiss.SearchParametersIVF
        parameters = make(nprobe=nprobe, **options)
        if self.pretransformed:
            return faiss.SearchParametersPreTransform(index_params=parameters)
        return parameters


def _is_of_type(index: Any, index_type: str) -> bool:
    """Check that a faiss index has the structure of an index type."""
    inner = index
    if isinstance(index, faiss.IndexPreTransform):
        inner = faiss.downcast_index(index.index)
    rotated, made = {
        "hnsw": (False, faiss.IndexHNSWFlat),
        "hnsw-sq": (False, faiss.IndexHNSWSQ),
        "ivf-sq": (False, faiss.IndexIVFScalarQuantizer),
        "ivf-pq": (True, faiss.IndexIVFPQ),
        "rabitq": (True, faiss.IndexIVFRaBitQ),
    }[index_type]
    same_metric = index.metric_type == faiss.METRIC_INNER_PRODUCT == inner.metric_type
    fits = inner.ntotal == index.ntotal and same_metric
    return type(inner) is made and rotated == (inner is not index) and fits


def _default_nlist(count: int) -> int:
    # faiss recommends at least 39 training rows per list.
    return max(1, min(int(4 * count**0.5), count // 39))


def _empty_index(index_type: str, dim: int, *, settings: FaissSettings, nlist: int) -> Any:
    metric = faiss.METRIC_INNER_PRODUCT
    if index_type == "hnsw":
        index = faiss.IndexHNSWFlat(dim, settings.M, metric)
    elif index_type == "hnsw-sq":
        index = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_8bit, settings.M, metric)
    elif index_type == "ivf-sq":
        index = faiss.index_factory(dim, f"IVF{nlist},SQ8", metric)
    elif index_type == "ivf-pq":
        parts = pq_parts(dim)
        # A random rotation spreads the variance over the subvectors; a learned one takes far
        # longer. "np" skips ordering the centroids, which is slow and only Hamming search needs.
        index = faiss.index_factory(dim, f"RR,IVF{nlist},PQ{parts}x8np", metric)
    elif index_type == "rabitq":
        index = faiss.index_factory(dim, f"RR,IVF{nlist},RaBitQ", metric)
    else:
        raise ValueError(f"expected a faiss index type, got {index_type!r}")
    _seed(index, settings)
    return index


def _seed(index: Any, settings: FaissSettings) -> None:
    inner = index
    if isinstance(index, faiss.IndexPreTransform):
        rotation = faiss.downcast_VectorTransform(index.chain.at(0))
        rotation.init(settings.seed)
        inner = faiss.downcast_index(index.index)
    if isinstance(inner, faiss.IndexHNSW):
        inner.hnsw.efConstruction = settings.ef_construction
    else:
        inner.cp.seed = settings.seed
        inner.cp.max_points_per_centroid = _TRAINING_ROWS_PER_LIST
        inner.cp.min_points_per_centroid = 1
    if isinstance(inner, faiss.IndexIVFPQ):
        inner.pq.cp.seed = settings.seed
        inner.pq.cp.min_points_per_centroid = 1


def _training_rows(folder: Vectors, *, nlist: int, seed: int) -> Float32[np.ndarray, "rows dim"]:
    """Draw a sample of the vectors, determined by the seed."""
    # 65,536 rows are 256 for each of the 256 centroids of a product quantizer.
    wanted = min(max(nlist * _TRAINING_ROWS_PER_LIST, 65_536), _MOST_TRAINING_ROWS, folder.count)
    generator = np.random.default_rng(seed)
    rows = np.sort(generator.choice(folder.count, size=wanted, replace=False))
    return folder.gather(rows.astype(np.int64))


def _reason(error: Exception) -> str:
    """Return faiss' error message without its source location."""
    text = " ".join(str(error).split())
    _, failed, reason = text.rpartition(" failed: ")
    return (reason if failed else text.split(" at /")[0])[:200] or "no reason given"
