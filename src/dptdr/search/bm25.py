"""Lexical search: BM25 over stemmed English words, stored as arrays that map into memory.

Scores and files are those of bm25s; what differs is how an index is built (streamed, in blocks, so
that memory holds the postings and not the corpus) and how equal scores are ordered (by passage).
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float32, Int

from dptdr.errors import DataError
from dptdr.io.atomic import atomic_folder, read_json, write_json
from dptdr.io.ids import IdTable
from dptdr.records import Hit, Passage, Query, Run

K1, B = 0.9, 0.4
FORMAT = 1
_BLOCK_PASSAGES = 20_000
_BLOCK_QUERIES = 64
_POSTING = np.dtype([("token", "<i4"), ("passage", "<i4"), ("count", "<i4")])


def _bm25s() -> Any:
    """Import bm25s; where JAX is installed it starts it, and JAX would take most of a GPU."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import bm25s

    return bm25s


class Bm25Index:
    """A BM25 index over a corpus.

    Build one with :meth:`build` or :meth:`load`.
    """

    def __init__(self, retriever: Any, *, ids: IdTable) -> None:
        self._retriever = retriever
        self._ids = ids
        self._tokenizer = _tokenizer()
        self._tokenizer.stem_to_sid = retriever.vocab_dict

    @classmethod
    def build(
        cls,
        passages: Iterable[Passage],
        *,
        k1: float = K1,
        b: float = B,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> "Bm25Index":
        """Index passages, read once and in order.

        Args:
            passages: The corpus; title and text are indexed as one.
            k1: How soon a repeated word stops adding to the score, above 0.
            b: How much long passages are held back, 0 (not) to 1 (fully).
            on_progress: Called with passages done and passages known so far.

        Returns:
            The index.

        Raises:
            DataError: If there is no passage, or none holds a word.
            ValueError: If k1 or b is out of range.

        Source:
            Robertson, Zaragoza 2009, in the variant of Lucene, as bm25s computes it; k1 and b are
            Anserini's defaults. Differs: nothing.
        """
        bm25s = _bm25s()

        if k1 <= 0 or not 0 <= b <= 1:
            raise ValueError(f"expected k1 above 0 and b from 0 to 1, got k1={k1}, b={b}")
        retriever = bm25s.BM25(k1=k1, b=b, method="lucene")
        tokenizer = _tokenizer()
        ids: list[str] = []
        lengths: list[int] = []
        sizes: list[int] = []
        with tempfile.TemporaryFile() as spool:
            stream = iter(passages)
            while block := list(islice(stream, _BLOCK_PASSAGES)):
                texts = [passage.content for passage in block]
                tokens = list(
                    tokenizer.streaming_tokenize(texts, update_vocab=True, allow_empty=False)
                )
                postings = _count_postings(tokens, first_passage=len(ids))
                postings.tofile(spool)
                sizes.append(postings.size)
                ids.extend(passage.id for passage in block)
                lengths.extend(map(len, tokens))
                if on_progress is not None:
                    on_progress(len(ids), len(ids))
            vocabulary = dict(tokenizer.stem_to_sid)
            if not vocabulary:
                what = "their text holds no word" if ids else "there is none"
                raise DataError(f"expected passages to index, {what}")
            retriever.scores = _score_matrix(
                partial(_read_postings, spool, sizes=sizes),
                lengths=np.array(lengths, dtype=np.int64),
                words=len(vocabulary),
                retriever=retriever,
            )
        retriever.vocab_dict = vocabulary
        retriever.nonoccurrence_array = None
        return cls(retriever, ids=IdTable.build(ids))

    def save(self, path: Path) -> None:
        """Write the index as a folder of ``.npy`` and JSON files, atomically."""
        with atomic_folder(Path(path)) as folder:
            self._retriever.save(folder, show_progress=False)
            self._ids.save(folder)
            settings = {"k1": self._retriever.k1, "b": self._retriever.b}
            write_json(folder / "bm25.json", {"format": FORMAT, "settings": settings})

    @classmethod
    def load(cls, path: Path) -> "Bm25Index":
        """Map a saved index into memory.

        Args:
            path: The folder that :meth:`save` wrote.

        Returns:
            The index; its arrays stay on disk until they are read.

        Raises:
            DataError: If the folder is missing, incomplete or of another format.
        """
        bm25s = _bm25s()

        path = Path(path)
        header = read_json(path / "bm25.json")
        found = header.get("format") if isinstance(header, dict) else None
        if found != FORMAT:
            raise DataError(
                f"expected format {FORMAT}, found {found}; build the index again",
                path=path / "bm25.json",
            )
        try:
            retriever = bm25s.BM25.load(path, mmap=True, show_progress=False)
            return cls(retriever, ids=IdTable.load(path))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"incomplete BM25 index ({error}); build it again", path=path) from None

    def __len__(self) -> int:
        return len(self._ids)

    def search(
        self,
        queries: Sequence[Query],
        *,
        depth: int,
        threads: int = 1,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Run:
        """Return the best passages of each query.

        Args:
            queries: What to look for.
            depth: Hits per query at most, at least 1.
            threads: Threads to use; the result does not depend on it.
            on_progress: Called with queries done and total.

        Returns:
            Query id to hits, best first, equal scores in the order of the corpus. Passages that
            share no word with the query are left out, so a query may have no hit.

        Raises:
            ValueError: If depth or threads is below 1.
        """
        run: Run = {}
        for query, (rows, scores) in zip(
            queries, self.search_rows(queries, depth=depth, threads=threads), strict=True
        ):
            pairs = zip(rows.tolist(), scores.tolist(), strict=True)
            run[query.id] = [Hit(self._ids[row], score) for row, score in pairs]
            if on_progress is not None and (len(run) % _BLOCK_QUERIES == 0):
                on_progress(len(run), len(queries))
        return run

    def search_rows(
        self, queries: Sequence[Query], *, depth: int, threads: int = 1
    ) -> Iterator[tuple[Int[np.ndarray, " hits"], Float32[np.ndarray, " hits"]]]:
        """Yield corpus rows and scores of each query's best passages; see :meth:`search`.

        Args:
            queries: What to look for.
            depth: Hits per query at most, at least 1.
            threads: Threads to use; the result does not depend on it.

        Yields:
            Rows and scores of one query, best first.

        Raises:
            ValueError: If depth or threads is below 1.
        """
        if depth < 1 or threads < 1:
            raise ValueError(f"expected depth and threads of at least 1, got {depth}, {threads}")
        # Words are looked up here, before any thread starts: the tokenizer keeps a cache.
        tokens = [self._query_tokens(query.text) for query in queries]
        with ThreadPoolExecutor(max_workers=threads) as pool:
            for start in range(0, len(tokens), _BLOCK_QUERIES * threads):
                block = tokens[start : start + _BLOCK_QUERIES * threads]
                yield from pool.map(partial(self._search_one, depth=depth), block)

    def _query_tokens(self, text: str) -> list[int]:
        """Return the token of each word of a query that the corpus knows, repeats kept."""
        (tokens,) = self._tokenizer.streaming_tokenize(
            [text], update_vocab=False, allow_empty=False
        )
        return list(tokens)

    def _search_one(
        self, tokens: list[int], *, depth: int
    ) -> tuple[Int[np.ndarray, " hits"], Float32[np.ndarray, " hits"]]:
        if not tokens:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        scores = self._retriever.get_scores_from_ids(tokens)
        rows = _top_rows(scores, depth=depth)
        return rows, scores[rows]


def _tokenizer() -> Any:
    bm25s = _bm25s()
    import Stemmer

    return bm25s.tokenization.Tokenizer(stopwords="english", stemmer=Stemmer.Stemmer("english"))


def _count_postings(tokens: Sequence[Sequence[int]], *, first_passage: int) -> Any:
    """Return one record per word and passage of a block, ordered by word, then passage."""
    lengths = np.fromiter(map(len, tokens), dtype=np.int64, count=len(tokens))
    flat = np.fromiter(
        (token for text in tokens for token in text), dtype=np.int64, count=int(lengths.sum())
    )
    passages = np.repeat(np.arange(len(tokens), dtype=np.int64), lengths)
    pairs, counts = np.unique(flat << 32 | passages, return_counts=True)
    postings = np.empty(pairs.size, dtype=_POSTING)
    postings["token"] = pairs >> 32
    postings["passage"] = (pairs & 0xFFFFFFFF) + first_passage
    postings["count"] = counts
    return postings


def _score_matrix(
    read_postings: Callable[[], Iterator[Any]],
    *,
    lengths: Int[np.ndarray, " passages"],
    words: int,
    retriever: Any,
) -> dict[str, Any]:
    """Turn spooled postings into bm25s's matrix: for each word, its passages and their scores."""
    frequencies = np.zeros(words, dtype=np.int64)
    for postings in read_postings():
        frequencies += np.bincount(postings["token"], minlength=words)
    starts = np.zeros(words + 1, dtype=np.int64)
    np.cumsum(frequencies, out=starts[1:])
    rarity = np.log1p((lengths.size - frequencies + 0.5) / (frequencies + 0.5)).astype(np.float32)
    k1, b = retriever.k1, retriever.b
    damping = k1 * ((1 - b) + b * lengths / lengths.mean())
    scores = np.empty(int(starts[-1]), dtype=np.float32)
    passages = np.empty(int(starts[-1]), dtype=np.int32)
    heads = starts[:-1].copy()
    for postings in read_postings():
        token, passage, count = (postings[name] for name in ("token", "passage", "count"))
        # Records of a word stand together and blocks come in corpus order: each goes to the next
        # free place of its word, which leaves every word's passages in corpus order.
        per_word = np.bincount(token, minlength=words)
        first = np.zeros(words + 1, dtype=np.int64)
        np.cumsum(per_word, out=first[1:])
        places = heads[token] + np.arange(token.size) - first[token]
        passages[places] = passage
        scores[places] = rarity[token] * (count / (damping[passage] + count))
        heads += per_word
    return {"data": scores, "indices": passages, "indptr": starts, "num_docs": lengths.size}


def _read_postings(spool: IO[bytes], *, sizes: Sequence[int]) -> Iterator[Any]:
    """Yield the spooled records again, block by block."""
    spool.seek(0)
    for size in sizes:
        yield np.fromfile(spool, dtype=_POSTING, count=size)


def _top_rows(scores: Float32[np.ndarray, " passages"], *, depth: int) -> Int[np.ndarray, " hits"]:
    """Return the rows of the highest scores above 0, equal scores by row."""
    if depth < scores.size:
        bound = np.partition(scores, scores.size - depth)[scores.size - depth]
        rows = np.flatnonzero(scores >= bound) if bound > 0 else np.flatnonzero(scores)
    else:
        rows = np.flatnonzero(scores)
    return rows[np.argsort(-scores[rows], kind="stable")][:depth]
