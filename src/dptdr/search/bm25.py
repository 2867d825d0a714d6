"""Lexical search: BM25 over stemmed terms, stored as memory-mapped arrays.

Scores and array files match those of bm25s. Unlike bm25s, indexing streams the corpus in blocks, so
that only the postings need memory, and ties are broken by corpus order.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int, Int32, Int64

from dptdr.errors import DataError
from dptdr.io.atomic import atomic_folder, read_json, sha256_file, write_json
from dptdr.io.ids import IdTable
from dptdr.io.lines import describe
from dptdr.io.npy import map_array, refuse_link
from dptdr.records import Hit, Passage, Query, Run
from dptdr.search.words import (
    AUTO,
    check_language,
    detect_language,
    languages,
    tokenizer,
    with_plain_letters,
)

K1, B = 0.9, 0.4
FORMAT = 2
HEADER = "bm25.json"
_WORDS = "vocab.index.json"
_ARRAYS = {
    "starts": ("indptr.csc.index.npy", np.int64),
    "passages": ("indices.csc.index.npy", np.int32),
    "scores": ("data.csc.index.npy", np.float32),
}
_BLOCK_PASSAGES = 20_000
_BLOCK_QUERIES = 64
_POSTING = np.dtype([("token", "<i4"), ("passage", "<i4"), ("count", "<i4")])


class Postings(NamedTuple):
    """Postings in CSC form: the passages and scores of each term, in corpus order."""

    starts: Int64[np.ndarray, " words_and_end"]
    """Offset of each term's first entry; the last element is the total."""
    passages: Int32[np.ndarray, " entries"]
    scores: Float32[np.ndarray, " entries"]


class Bm25Index:
    """A BM25 index; create one with :meth:`build` or :meth:`load`."""

    def __init__(
        self,
        postings: Postings,
        words: dict[str, int],
        *,
        ids: IdTable,
        language: str,
        k1: float,
        b: float,
    ) -> None:
        self.language = language
        self.k1, self.b = k1, b
        self._postings = postings
        self._words = words
        self._ids = ids
        self._tokenizer = tokenizer(language)
        self._tokenizer.stem_to_sid = words

    @classmethod
    def build(
        cls,
        passages: Iterable[Passage],
        *,
        language: str = AUTO,
        k1: float = K1,
        b: float = B,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> "Bm25Index":
        """Index the titles and texts of passages in a single pass.

        Args:
            language: Language of the stemmer and stop words; ``auto`` detects it from the first
                passages.
            k1: Term-frequency saturation, above 0.
            b: Length normalisation, from 0 (none) to 1 (full).

        Raises:
            ConfigError: If the language is unknown.
            DataError: If there are no passages, or none contains a term.
            ValueError: If k1 or b is out of range.

        Source:
            Robertson and Zaragoza (2009), in Lucene's variant as computed by bm25s, with Anserini's
            defaults for k1 and b. Differs: nothing.
        """
        if k1 <= 0 or not 0 <= b <= 1:
            raise ValueError(f"expected k1 above 0 and b from 0 to 1, got k1={k1}, b={b}")
        language = check_language(language)
        words: Any = None
        ids: list[str] = []
        lengths: list[int] = []
        sizes: list[int] = []
        with tempfile.TemporaryFile() as spool:
            stream = iter(passages)
            while block := list(islice(stream, _BLOCK_PASSAGES)):
                texts = [passage.content for passage in block]
                if words is None:
                    language = detect_language(texts) if language == AUTO else language
                    words = tokenizer(language)
                texts = with_plain_letters(texts, language)
                tokens = list(words.streaming_tokenize(texts, update_vocab=True, allow_empty=False))
                postings = _count_postings(tokens, first_passage=len(ids))
                postings.tofile(spool)
                sizes.append(postings.size)
                ids.extend(passage.id for passage in block)
                lengths.extend(map(len, tokens))
                if on_progress is not None:
                    on_progress(len(ids), len(ids))
            vocabulary = {} if words is None else dict(words.stem_to_sid)
            if not vocabulary:
                found = "passages without any terms" if ids else "none"
                raise DataError(f"expected passages to index, got {found}")
            matrix = _score_matrix(
                partial(_read_postings, spool, sizes=sizes),
                lengths=np.array(lengths, dtype=np.int64),
                words=len(vocabulary),
                k1=k1,
                b=b,
            )
        return cls(matrix, vocabulary, ids=IdTable.build(ids), language=language, k1=k1, b=b)

    def save(self, path: Path) -> None:
        """Write the index as a folder of ``.npy`` and JSON files, atomically."""
        with atomic_folder(Path(path)) as folder:
            for field, (name, _) in _ARRAYS.items():
                np.save(folder / name, getattr(self._postings, field), allow_pickle=False)
            write_json(folder / _WORDS, self._words, indent=None)
            self._ids.save(folder)
            files = {
                file.name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
                for file in sorted(folder.iterdir())
            }
            settings = {"k1": self.k1, "b": self.b, "language": self.language}
            write_json(folder / HEADER, {"format": FORMAT, "settings": settings, "files": files})

    @classmethod
    def load(cls, path: Path, *, verify: bool = False) -> "Bm25Index":
        """Load a saved index with memory-mapped arrays.

        Raises:
            DataError: If the folder is missing, incomplete, damaged or in an unknown format.
        """
        path = Path(path)
        settings, files = _read_header(path)
        for name, stored in files.items():
            _check_file(path / name, stored, verify=verify)
        refuse_link(path / _WORDS)
        words = read_json(path / _WORDS)
        arrays = {
            field: map_array(path / name, dtype=dtype) for field, (name, dtype) in _ARRAYS.items()
        }
        postings = Postings(**arrays)
        _check_postings(postings, words, path=path)
        return cls(postings, words, ids=IdTable.load(path), **settings)

    def __len__(self) -> int:
        return len(self._ids)

    def search(
        self,
        queries: Sequence[Query],
        *,
        depth: int,
        among: Int[np.ndarray, " rows"] | None = None,
        threads: int = 1,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Run:
        """Return the best passages for each query; ties are broken by corpus order.

        Passages that share no term with the query are omitted, so a query may have no hits. The
        result does not depend on ``threads``.

        Args:
            among: Search only these corpus rows, in ascending order.

        Raises:
            ValueError: If depth or threads is below 1.
        """
        run: Run = {}
        for query, (rows, scores) in zip(
            queries,
            self.search_rows(queries, depth=depth, among=among, threads=threads),
            strict=True,
        ):
            pairs = zip(rows.tolist(), scores.tolist(), strict=True)
            run[query.id] = [Hit(self._ids[row], score) for row, score in pairs]
            if on_progress is not None and (len(run) % _BLOCK_QUERIES == 0):
                on_progress(len(run), len(queries))
        return run

    def search_rows(
        self,
        queries: Sequence[Query],
        *,
        depth: int,
        among: Int[np.ndarray, " rows"] | None = None,
        threads: int = 1,
    ) -> Iterator[tuple[Int[np.ndarray, " hits"], Float32[np.ndarray, " hits"]]]:
        """Yield the corpus rows and scores of each query's best passages; see :meth:`search`."""
        if depth < 1 or threads < 1:
            raise ValueError(f"expected depth and threads of at least 1, got {depth}, {threads}")
        # Tokenize before any thread starts: the tokenizer's cache is not thread-safe.
        texts = with_plain_letters((query.text for query in queries), self.language)
        tokens = list(
            self._tokenizer.streaming_tokenize(texts, update_vocab=False, allow_empty=False)
        )
        with ThreadPoolExecutor(max_workers=threads) as pool:
            for start in range(0, len(tokens), _BLOCK_QUERIES * threads):
                block = tokens[start : start + _BLOCK_QUERIES * threads]
                yield from pool.map(partial(self._search_one, depth=depth, among=among), block)

    def _search_one(
        self, tokens: Sequence[int], *, depth: int, among: Int[np.ndarray, " rows"] | None
    ) -> tuple[Int[np.ndarray, " hits"], Float32[np.ndarray, " hits"]]:
        starts, passages, weights = self._postings
        scores = np.zeros(len(self._ids), dtype=np.float32)
        for token in tokens:
            entries = slice(int(starts[token]), int(starts[token + 1]))
            try:
                # Unsigned, because a negative row in a damaged file would index from the end.
                scores[passages[entries].view(np.uint32)] += weights[entries]
            except IndexError:
                raise DataError(
                    f"BM25 index: expected passage numbers below {len(scores):,}; the index is "
                    "damaged, rebuild it"
                ) from None
        if among is None:
            rows = _top_rows(scores, depth=depth)
        else:
            rows = among[_top_rows(scores[among], depth=depth)]
        return rows, scores[rows]


def stored_language(path: Path) -> str:
    """Return the language of a saved index without loading its arrays."""
    return str(_read_header(path)[0]["language"])


def _read_header(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings and file records of a saved index."""
    where = path / HEADER
    refuse_link(where)
    header = read_json(where)
    found = header.get("format") if isinstance(header, dict) else None
    if type(found) is not int or not 1 <= found <= FORMAT:
        raise DataError(
            f"expected format {FORMAT}, got {describe(found)}; rebuild the index", path=where
        )
    settings, files = header.get("settings"), header.get("files", {})
    if found == 1 and isinstance(settings, dict):
        settings = {**settings, "language": "english"}
    if (
        not isinstance(settings, dict)
        or settings.keys() != {"k1", "b", "language"}
        or settings["language"] not in languages()
        or not all(isinstance(settings[name], int | float) for name in ("k1", "b"))
    ):
        raise DataError(
            "expected numbers k1 and b and a known language; rebuild the index",
            path=where,
            field="settings",
        )
    known = {_WORDS, "ids.npy", "id_offsets.npy", *(name for name, _ in _ARRAYS.values())}
    if not isinstance(files, dict) or files.keys() != (known if found > 1 else set()):
        raise DataError(
            "expected exactly the files of a BM25 index; rebuild it", path=where, field="files"
        )
    return settings, files


def _check_file(path: Path, stored: object, *, verify: bool) -> None:
    refuse_link(path)
    if not isinstance(stored, dict) or not path.is_file():
        raise DataError("incomplete BM25 index; rebuild it", path=path)
    found: dict[str, object] = {"bytes": path.stat().st_size}
    if verify:
        found["sha256"] = sha256_file(path)
    for name, value in found.items():
        if stored.get(name) != value:
            raise DataError(
                f"{name}: expected {stored.get(name)}, got {value}; the file is damaged, rebuild "
                "the index",
                path=path,
            )


def _check_postings(postings: Postings, words: object, *, path: Path) -> None:
    """Reject inconsistent parts; passage numbers are checked during search."""
    starts, passages, scores = postings
    if not isinstance(words, dict) or not {type(number) for number in words.values()} <= {int}:
        raise DataError("expected a number for each term; rebuild the index", path=path / _WORDS)
    if words and not 0 <= min(words.values()) <= max(words.values()) < len(words):
        raise DataError("expected terms numbered from 0; rebuild the index", path=path / _WORDS)
    fits = len(starts) == len(words) + 1 and len(passages) == len(scores) == starts[-1]
    if not fits or starts[0] != 0 or (np.diff(starts) < 0).any():
        raise DataError("its arrays have inconsistent sizes; rebuild the index", path=path)


def _count_postings(tokens: Sequence[Sequence[int]], *, first_passage: int) -> Any:
    """Count each term in each passage of a block, sorted by term, then passage."""
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
    k1: float,
    b: float,
) -> Postings:
    """Turn spooled counts into scored postings."""
    frequencies = np.zeros(words, dtype=np.int64)
    for postings in read_postings():
        frequencies += np.bincount(postings["token"], minlength=words)
    starts = np.zeros(words + 1, dtype=np.int64)
    np.cumsum(frequencies, out=starts[1:])
    rarity = np.log1p((lengths.size - frequencies + 0.5) / (frequencies + 0.5)).astype(np.float32)
    damping = k1 * ((1 - b) + b * lengths / lengths.mean())
    scores = np.empty(int(starts[-1]), dtype=np.float32)
    passages = np.empty(int(starts[-1]), dtype=np.int32)
    heads = starts[:-1].copy()
    for postings in read_postings():
        token, passage, count = (postings[name] for name in ("token", "passage", "count"))
        # A block's records are grouped by term and blocks arrive in corpus order, so appending
        # each record to its term's postings keeps them in corpus order.
        per_word = np.bincount(token, minlength=words)
        first = np.zeros(words + 1, dtype=np.int64)
        np.cumsum(per_word, out=first[1:])
        places = heads[token] + np.arange(token.size) - first[token]
        passages[places] = passage
        scores[places] = rarity[token] * (count / (damping[passage] + count))
        heads += per_word
    return Postings(starts, passages, scores)


def _read_postings(spool: IO[bytes], *, sizes: Sequence[int]) -> Iterator[Any]:
    """Yield the spooled records, one block at a time."""
    spool.seek(0)
    for size in sizes:
        yield np.fromfile(spool, dtype=_POSTING, count=size)


def _top_rows(scores: Float32[np.ndarray, " passages"], *, depth: int) -> Int[np.ndarray, " hits"]:
    """Return the rows with the highest positive scores; ties go to the lower row."""
    if depth < scores.size:
        bound = np.partition(scores, scores.size - depth)[scores.size - depth]
        rows = np.flatnonzero(scores >= bound) if bound > 0 else np.flatnonzero(scores)
    else:
        rows = np.flatnonzero(scores)
    return rows[np.argsort(-scores[rows], kind="stable")][:depth]
