"""Negatives that a training run mines anew with its own checkpoint, every so many steps.

The refresh of a step is a pure function of the parameters at that step, and stands in the run's
folder before the step is trained. So a run that was killed, before, in or after a refresh, goes on
to the same bytes as one that was not.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from jaxtyping import Float

from dptdr.config.training import TrainingConfig
from dptdr.errors import ConfigError, TrainingError
from dptdr.io.atomic import read_json, sha256_file, write_json
from dptdr.io.beir import CORPUS, BeirFolder
from dptdr.io.offsets import line_spans
from dptdr.io.store import PassageStore
from dptdr.mining.corpus import CorpusTable, JudgementTable, stable_hash
from dptdr.mining.counting import Material
from dptdr.mining.pipeline import mine
from dptdr.mining.runtable import RunTable, RunTableWriter
from dptdr.mining.settings import CleaningSettings, MiningSettings, SourceSettings
from dptdr.mining.statistics import Statistics
from dptdr.mining.teachers import EncoderTeacher
from dptdr.model import Encoder
from dptdr.records import Query, TrainingGroup
from dptdr.search.indexes.exact import top_k_of_blocks
from dptdr.search.vectors.documents import read_documents, source_of
from dptdr.search.vectors.encoding import EncodeSettings, encode_folder
from dptdr.search.vectors.folder import VectorFolder
from dptdr.training.checkpoints import RunFolder
from dptdr.training.distributed import World
from dptdr.training.groups import Groups

SOURCE = "current"
"""What the source is called in the mined files."""

_QUOTA = 30
_QUERIES_PER_PART = 4_096


class RefreshedGroups:
    """Training groups whose mined negatives can be exchanged; their order and positives stay.

    Args:
        base: The groups as they are before the first refresh.
        passages: Where the negatives' texts are.
    """

    def __init__(self, base: Groups, *, passages: PassageStore) -> None:
        self.base = base
        self._passages = passages
        self._path: Path | None = None

    def __len__(self) -> int:
        """Number of groups."""
        return len(self.base)

    def __getitem__(self, item: int) -> TrainingGroup:
        """Return one group with the negatives of the last refresh."""
        group = self.base[item]
        ids = self._negatives(group.query_id)
        if ids is None:
            return group
        texts = tuple(self._passages[passage_id].content for passage_id in ids)
        return group._replace(negatives=texts, negative_ids=ids, negative_scores=())

    def exchange(self, path: Path) -> None:
        """Take the negatives of a mined file from now on.

        Args:
            path: What :func:`dptdr.mining.pipeline.mine` wrote; a query that it does not hold
                keeps the negatives that it began with.
        """
        self._spans = line_spans(path)
        hashes = np.fromiter(
            (stable_hash(self._record(row)["query_id"]) for row in range(len(self._spans))),
            dtype=np.uint64,
            count=len(self._spans),
        )
        self._rows = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._rows]
        self._path = path

    def _negatives(self, query_id: str) -> tuple[str, ...] | None:
        if self._path is None:
            return None
        wanted = np.uint64(stable_hash(query_id))
        place = int(np.searchsorted(self._hashes, wanted))
        if place == len(self._hashes) or self._hashes[place] != wanted:
            return None
        record = self._record(int(self._rows[place]))
        return tuple(str(negative["id"]) for negative in record["negatives"])

    def _record(self, row: int) -> Any:
        return orjson.loads(self._spans.read(row))


class Refresher:
    """Mines with the current parameters at every ``refresh_every``-th step.

    Args:
        source: The data folder.
        groups: The training groups; their positives name passages of the folder.
        config: Training settings.
        encoder: The encoder that is trained.
        folder: The run's files; the mined files stand in ``refresh/``.
        world: The processes: they share the encoding, and the first one mines.

    Raises:
        ConfigError: If the groups' positives are not passages of the folder.
    """

    def __init__(
        self,
        source: BeirFolder,
        groups: Groups,
        config: TrainingConfig,
        *,
        encoder: Encoder,
        folder: RunFolder,
        world: World,
    ) -> None:
        self._source = source
        self._config = config
        self._encoder = encoder
        self._folder = folder
        self._world = world
        self._path = folder.path / "refresh"
        self._passages = PassageStore(source)
        self._corpus = CorpusTable.build(source.passages())
        self._judgements = _judgements(groups, corpus=self._corpus, path=source.path)
        self._fingerprint = source.fingerprint()
        self._last = 0
        self.groups = RefreshedGroups(groups, passages=self._passages)

    def is_due(self, step: int) -> bool:
        """Return whether other negatives than now belong to the step after so many."""
        return self._due(step) != self._last

    def before_step(self, step: int) -> None:
        """Make the negatives ready that a step trains with.

        Args:
            step: Steps done.

        Raises:
            TrainingError: If a run is resumed whose last refresh was removed.
            NegativesError: If no negative is found.
        """
        if not self.is_due(step):
            return
        due = self._due(step)
        path = self._path / f"step-{due:07d}.jsonl"
        if not path.is_file():
            if step != due:
                raise TrainingError(
                    f"{path}: the negatives that step {step + 1} goes on with are gone; put the "
                    "file back, or train anew without --resume"
                )
            self._refresh(due, path)
        self._world.barrier()
        self.groups.exchange(path)
        self._last = due

    def clear(self) -> None:
        """Remove what only further refreshes would need; the mined files stay."""
        for pattern in ("vectors-*", "*.partial"):
            for path in self._path.glob(pattern):
                shutil.rmtree(path)

    def _due(self, step: int) -> int:
        return step - step % self._config.refresh_every

    def _refresh(self, step: int, path: Path) -> None:
        began = time.monotonic()
        work = path.with_suffix(".partial")
        vectors = self._encode()
        if self._world.is_first:
            record = self._mine(work, vectors=VectorFolder(vectors))
            self._folder.log(
                {"kind": "refresh", "step": step, **record, "seconds": time.monotonic() - began}
            )
            # Only now do the mined negatives count: what is logged is there, and the reverse.
            (work / "negatives.jsonl").replace(path)
            shutil.rmtree(work)
            if self._encoder.method is not None and self._encoder.method.changes("passage"):
                shutil.rmtree(vectors)

    def _encode(self) -> Path:
        """Encode the corpus, each process a part; vectors of a bare passage side are kept."""
        out = self._path / f"vectors-{self._encoder.passage_fingerprint[:16]}"
        encode_folder(
            self._encoder,
            read_documents(self._source.path),
            out=out,
            source=source_of(self._source.path),
            settings=EncodeSettings(part=self._world.rank, parts=self._world.size),
        )
        self._world.barrier()
        return out

    def _mine(self, work: Path, *, vectors: VectorFolder) -> dict[str, Any]:
        """Write ``negatives.jsonl`` into the folder of the unfinished work; return its facts."""
        facts, out = work / "facts.json", work / "negatives.jsonl"
        if facts.is_file():
            return dict(read_json(facts))
        if out.is_file():
            # Killed before the facts were written: the counts are lost, the file is made again.
            shutil.rmtree(work / "mined")
            out.unlink()
        encoder, config = self._encoder, self._config
        settings = MiningSettings(
            sources=(
                SourceSettings(
                    name=SOURCE,
                    kind="task",
                    last_rank=config.refresh_depth,
                    quota=_QUOTA,
                    sampling="uniform",
                ),
            ),
            cleaning=CleaningSettings(percent=config.refresh_percent or None),
            seed=config.seed,
        )
        identity = f"{encoder.query_fingerprint} {encoder.passage_fingerprint}"
        member = (encoder.encode_queries, vectors, identity)
        statistics = mine(
            Material(
                queries=self._queries,
                judgements=self._judgements,
                corpus=self._corpus,
                passages=self._passages,
                runs={SOURCE: self._search(work / "run", identity=identity, vectors=vectors)},
                teacher=EncoderTeacher([member], name=SOURCE) if config.refresh_percent else None,
            ),
            settings,
            out=out,
            work=work / "mined",
            data_fingerprint=self._fingerprint,
        )
        found = refresh_facts(statistics) | {"sha256": sha256_file(out)}
        write_json(facts, found)
        return found

    def _search(self, path: Path, *, identity: str, vectors: VectorFolder) -> RunTable:
        writer = RunTableWriter(path, fingerprint=f"{identity} {self._config.refresh_depth}")
        if writer.finished:
            return RunTable(path)
        for queries in self._parts(skip=writer.parts):
            encoded: Float[np.ndarray, "queries dim"] = self._encoder.encode_queries(
                [query.text for query in queries]
            )
            scores, rows = top_k_of_blocks(
                encoded, vectors.blocks(), depth=self._config.refresh_depth
            )
            writer.write_part((query.id, rows[at], scores[at]) for at, query in enumerate(queries))
        return writer.finish()

    def _queries(self) -> Iterator[Query]:
        """Yield each group's query; an id that stands twice comes once."""
        seen: set[int] = set()
        for item in range(len(self.groups)):
            group = self.groups.base[item]
            if (key := stable_hash(group.query_id)) not in seen:
                seen.add(key)
                yield Query(group.query_id, group.query)

    def _parts(self, *, skip: int) -> Iterator[list[Query]]:
        block: list[Query] = []
        number = 0
        for query in self._queries():
            block.append(query)
            if len(block) == _QUERIES_PER_PART:
                if number >= skip:
                    yield block
                block, number = [], number + 1
        if block and number >= skip:
            yield block


def refresh_facts(statistics: Statistics) -> dict[str, Any]:
    """Return what the log and the bundle tell of a refresh.

    Args:
        statistics: Counts of the mining.

    Returns:
        Queries, those left without a negative, negatives, dropped candidates, and the share of
        negatives that the retriever ranks above the query's best positive (0 where it ranks none).
    """
    counts = statistics.sources[SOURCE]
    return {
        "queries": statistics.queries,
        "queries_without_negative": statistics.without_negative,
        "negatives": statistics.negatives,
        "dropped": sum(counts.dropped.values()),
        "above_positive": counts.above_positive / max(1, counts.with_positive),
    }


def _judgements(groups: Groups, *, corpus: CorpusTable, path: Path) -> JudgementTable:
    """Return the groups' positives as judgements."""

    def triples() -> Iterator[tuple[str, str, int]]:
        for item in range(len(groups)):
            group = groups[item]
            yield from ((group.query_id, passage_id, 1) for passage_id in group.positive_ids)

    table = JudgementTable.build(triples(), corpus=corpus)
    if not table.queries:
        raise ConfigError(
            f"refresh_every: expected training groups whose positives are passages of "
            f"{path / CORPUS}, got groups of texts without ids; train from the qrels or from a "
            "file of `dptdr mine`"
        )
    return table
