"""The functions of dptdr, one for each stage; the command line calls the same ones.

``data`` is a BEIR folder everywhere. Where a function takes an encoder, give what :func:`load` or
:func:`train` returned, the folder of a task, or the name or folder of a bare backbone.
"""

import functools
import itertools
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from dptdr.config.requests import pretraining_request, training_request
from dptdr.errors import ConfigError
from dptdr.evaluation.compare import Comparison, compare_reports
from dptdr.evaluation.report import EvaluationReport
from dptdr.io.beir import BeirFolder
from dptdr.io.progress import TrainingProgress
from dptdr.io.progress import progress as progress_bar
from dptdr.mining.settings import OutputFormat, PositiveScore
from dptdr.model import Backbone, Encoder, TaskManifest, load_encoder, load_task, read_manifest
from dptdr.model.hub import push_task, task_folder
from dptdr.pretraining.pretrain import PretrainingResult
from dptdr.records import Run
from dptdr.search.indexes.local import LocalIndex
from dptdr.search.retriever import SearchIndex, SearchResult
from dptdr.search.vectors.documents import Document, read_documents, source_of
from dptdr.search.vectors.folder import VectorFolder
from dptdr.training.train import TrainingResult

__all__ = [
    "Encoder",
    "SearchIndex",
    "SearchResult",
    "Task",
    "build_index",
    "compare",
    "encode",
    "evaluate",
    "load",
    "mine",
    "open_index",
    "pretrain",
    "retrieve",
    "serve",
    "train",
]

AnyPath: TypeAlias = Path | str
AnyEncoder: TypeAlias = Encoder | Path | str
Phase: TypeAlias = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


class Task(Encoder):
    """An encoder with a trained task: ``encode_queries`` and ``encode_passages`` return vectors.

    Args:
        encoder: The task's encoder.
        path: The bundle's folder.
        result: What training left; ``None`` for a task that was loaded.
    """

    def __init__(
        self, encoder: Encoder, *, path: Path, result: TrainingResult | None = None
    ) -> None:
        super().__init__(
            encoder.backbone, method=encoder.method, limits=encoder.limits, name=encoder.name
        )
        self.path = path
        self.result = result

    @property
    def manifest(self) -> TaskManifest:
        """What ``task.json`` says: method, settings, fingerprints, dev measures."""
        return read_manifest(self.path)

    def push_to_hub(
        self,
        repository: str,
        *,
        base_model: str | None = None,
        license_name: str = "unknown",
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> str:
        """Upload the bundle to the Hugging Face hub; :func:`load` takes ``org/name`` then.

        Args:
            repository: ``org/name``; it is made where there is none.
            base_model: The backbone's name on the hub; needed where it is a local folder here.
            license_name: The licence for the card, as the hub names it (``apache-2.0``).
            private: Whether a new repository is private.
            revision: Branch to write to; the main one by default.
            token: Access token; the stored one by default.

        Returns:
            The address of the commit.
        """
        return push_task(
            self.path,
            repository,
            base_model=base_model,
            license_name=license_name,
            private=private,
            revision=revision,
            token=token,
        )


def load(
    name: AnyPath,
    *,
    backbone: str | Backbone | None = None,
    device: str = "auto",
    dtype: str = "float32",
) -> Encoder:
    """Load a task, or a bare backbone.

    Args:
        name: Folder of a task or its name on the hub (``org/name``), or name or folder of a
            backbone (``minilm`` needs no download).
        backbone: Where the task's backbone lies, or the loaded one; by default the one that the
            task names.
        device: Torch device; ``auto`` takes cuda, mps or cpu, the first that is there.
        dtype: Number type of the backbone's weights.

    Returns:
        The encoder; a :class:`Task` if ``name`` is one.
    """
    folder = task_folder(name)
    if folder is not None:
        return encoder_of(task=folder, backbone=backbone, device=device, dtype=dtype)
    if backbone is not None:
        read_manifest(Path(name))
    return encoder_of(backbone=str(name), device=device, dtype=dtype)


def train(
    data: AnyPath,
    *,
    out: AnyPath,
    backbone: AnyPath | Backbone = "minilm",
    method: str = "deep-prompt",
    negatives: AnyPath | None = None,
    from_task: AnyPath | None = None,
    min_grade: int = 1,
    overwrite: bool = False,
    device: str = "auto",
    threads: int | None = None,
    tensorboard: AnyPath | None = None,
    track: Literal["wandb", "trackio", "mlflow"] | None = None,
    progress: bool = True,
    **settings: Any,
) -> Task:
    """Train a task on a frozen backbone, choose its best checkpoint and write its bundle.

    Args:
        data: The data; trains on ``qrels/train.tsv``.
        out: Folder of the bundle; checkpoints and log go to ``OUT.training``.
        backbone: Name or folder of the encoder, or a loaded one.
        method: ``deep-prompt``, ``shallow-prompt``, ``lora``, ``bitfit`` or ``full``.
        negatives: Mined negatives or training groups (JSON lines) that replace the train qrels.
        from_task: Start from the prompt of this task.
        min_grade: Minimum grade of a positive.
        overwrite: Start over, whatever is at ``out`` and in ``OUT.training``.
        device: Torch device; ``auto`` takes cuda, mps or cpu.
        threads: Processor threads; torch's own choice by default.
        tensorboard: Write TensorBoard files to this folder.
        track: Send the run's log to this tracker as well.
        progress: Show progress on standard error.
        **settings: Fields of :class:`dptdr.config.training.TrainingConfig` and of the method's
            settings in :mod:`dptdr.config.methods`, such as ``max_steps`` or ``prompt_length``.

    Returns:
        The task.

    Raises:
        ConfigError: If a setting is unknown, wrong, or does not belong to the method.
    """
    from dptdr.training.start import train_folder
    from dptdr.training.tracking import Tracking

    tracking = Tracking(
        tensorboard=None if tensorboard is None else Path(tensorboard), tracker=track
    )
    request = training_request(method, settings, from_task=from_task is not None)
    folder = BeirFolder(data)
    _set_threads(threads)
    encoder = _backbone(backbone, device=device)
    watch = TrainingProgress(request.config.dev_measure) if progress else None
    with watch or nullcontext():
        result = train_folder(
            folder,
            Path(out),
            backbone=encoder,
            request=request,
            negatives=None if negatives is None else Path(negatives),
            from_task=None if from_task is None else Path(from_task),
            min_grade=min_grade,
            overwrite=overwrite,
            watch=watch,
            tracking=tracking,
        )
    return Task(load_task(Path(out), backbone=encoder), path=Path(out), result=result)


def pretrain(
    data: AnyPath,
    *,
    out: AnyPath,
    backbone: AnyPath | Backbone = "minilm",
    prompt_only: bool = False,
    from_task: AnyPath | None = None,
    keep_head: bool = False,
    force: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    threads: int | None = None,
    progress: bool = True,
    **settings: Any,
) -> PretrainingResult | None:
    """Pretrain an encoder, or with ``prompt_only`` a deep prompt alone, on the bare texts of data.

    Args:
        data: The data; only its corpus is read.
        out: The backbone's folder, or the task's; checkpoints and log go to ``OUT.pretraining``.
        backbone: Name or folder of the encoder, or a loaded one.
        prompt_only: Freeze the backbone and train a prompt alone.
        from_task: With ``prompt_only``: start from the prompt of this task.
        keep_head: Write the heads beside the backbone, to continue from them later.
        force: With ``prompt_only``: write the prompt even if held-out pseudo-queries find it no
            better than the backbone.
        overwrite: Start over, whatever is at ``out`` and in ``OUT.pretraining``.
        device: Torch device; ``auto`` takes cuda, mps or cpu.
        threads: Processor threads; torch's own choice by default.
        progress: Show progress on standard error.
        **settings: Fields of :class:`dptdr.config.pretraining.PretrainingConfig`, and with
            ``prompt_only`` of :class:`dptdr.config.methods.DeepPromptConfig`.

    Returns:
        What was reached; give its ``out`` to :func:`train` as ``backbone``, or as ``from_task``.
        ``None`` in all processes of ``torchrun`` but the first.

    Raises:
        NoGain: If a prompt was trained on the fused ranking and is no better than the backbone.
    """
    from dptdr.model.bundle import load_prompt_rows
    from dptdr.pretraining.pretrain import pretrain as pretrain_folder

    config, prompt = pretraining_request(
        settings,
        prompt_only=prompt_only,
        from_task=from_task is not None,
        keep_head=keep_head,
        force=force,
    )
    folder = BeirFolder(data)
    _set_threads(threads)
    encoder = _backbone(backbone, device=device)
    rows = None if from_task is None else load_prompt_rows(Path(from_task), backbone=encoder)
    watch = TrainingProgress(config.dev_measure) if progress else None
    with watch or nullcontext():
        return pretrain_folder(
            folder,
            Path(out),
            backbone=encoder,
            config=config,
            prompt=prompt,
            start_rows=rows,
            keep_head=keep_head,
            force=force,
            overwrite=overwrite,
            watch=watch,
            note=_note if progress else None,
        )


def mine(
    data: AnyPath,
    *,
    out: AnyPath,
    sources: Sequence[str] = ("bm25",),
    split: str = "train",
    num_negatives: int = 30,
    range_max: int = 200,
    teacher: str | None = None,
    max_score: float | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    positive_score: PositiveScore = "mean",
    keep_scores: bool = False,
    min_grade: int = 1,
    keep_identical: bool = False,
    format: OutputFormat = "dptdr",
    judged_split: str | None = None,
    cache: AnyPath | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
    threads: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Mine hard negatives; judged positives and copies of their texts never appear.

    Args:
        data: The data.
        out: JSON-lines file to write; give it to :func:`train` as ``negatives``.
        sources: Each ``bm25``, ``bm25:LANGUAGE``, ``backbone:NAME``, ``task:FOLDER`` or
            ``run:FILE``.
        split: Whose judgements are the positives.
        num_negatives: Negatives for each query and source.
        range_max: Ranks 1 to this are candidates.
        teacher: Scores candidates to drop false negatives, or to distil: ``cross-encoder:NAME``,
            ``task:FOLDER``, ``backbone:NAME`` or ``file:RUN``.
        max_score: Drop candidates whose score is at least this.
        absolute_margin: Drop candidates that score above the positive's score minus this.
        relative_margin: Drop candidates that score above the positive's score times 1 minus this
            (0.05: above 95 % of it).
        positive_score: Which score counts where a query has several positives.
        keep_scores: Drop nothing; write the teacher's scores.
        min_grade: Minimum grade of a positive.
        keep_identical: Whether a query that is a passage of the data may be its own negative.
        format: ``dptdr`` (ids with provenance) or ``tevatron`` (texts).
        judged_split: Measure precision and recall of the removal on this split's judgements.
        cache: Keep corpus vectors and the BM25 index in this folder.
        seed: Seed of the sampling.
        device: Torch device; ``auto`` takes cuda, mps or cpu.
        dtype: Number type of the encoders' weights.
        threads: Threads of BM25; one for each core by default.
        overwrite: Start over, whatever is at ``out`` and in ``OUT.partial``.
        progress: Show progress on standard error.

    Returns:
        The report: counts, provenance, statistics.
    """
    from dptdr.mining.folder import MineRequest, check_teacher, mine_folder
    from dptdr.mining.settings import CleaningSettings, MiningSettings, check_sources, parse_source
    from dptdr.mining.sources import Machine

    cleaning = CleaningSettings(
        drop_above=max_score,
        margin=absolute_margin,
        percent=None if relative_margin is None else 100.0 * (1.0 - relative_margin),
        positive_score=positive_score,
    )
    check_teacher(teacher, cleaning, keep_scores=keep_scores, judged_split=judged_split)
    parsed = [parse_source(text, depth=range_max, quota=num_negatives) for text in sources]
    check_sources(parsed)
    request = MineRequest(
        data=Path(data),
        out=Path(out),
        split=split,
        settings=MiningSettings(
            sources=tuple(parsed), cleaning=cleaning, seed=seed, min_grade=min_grade, output=format
        ),
        keep_identical=keep_identical,
        teacher=teacher,
        judged_split=judged_split,
        cache=None if cache is None else Path(cache),
        machine=Machine(resolve_device(device), dtype, threads or os.cpu_count() or 1),
    )
    return mine_folder(request, show=_phases(progress), overwrite=overwrite)


def encode(
    data: AnyPath,
    encoder: AnyEncoder,
    *,
    out: AnyPath,
    shard_size: int = 16_384,
    dtype: Literal["float32", "float16"] = "float32",
    part: tuple[int, int] = (0, 1),
    processes: int = 1,
    ray: str | None = None,
    limit: int | None = None,
    device: str = "auto",
    weights: str = "float32",
    backbone: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> VectorFolder | None:
    """Encode a corpus into a vector folder; a stopped call goes on where it was.

    Args:
        data: The data; its corpus is encoded.
        encoder: Encodes the passages.
        out: The vector folder.
        shard_size: Passages in a shard: what a kill loses at most.
        dtype: Stored number type; ``float16`` takes half the bytes.
        part: Do part i of n, from 0: for several machines.
        processes: Processes on this machine, or workers of ``ray``; each loads the encoder.
        ray: Encode on a Ray cluster: its address, ``auto`` or ``local``.
        limit: Encode only the first so many passages.
        device: Torch device; ``auto`` takes cuda, mps or cpu.
        weights: Number type of the backbone's weights.
        backbone: Where the task's backbone lies, if not where it was.
        overwrite: Start over, whatever is at ``out``.
        progress: Show progress on standard error.

    Returns:
        The vectors; ``None`` while other parts are not done.
    """
    from dptdr.search.vectors.cluster import Cluster, encode_on_ray
    from dptdr.search.vectors.encoding import EncodeSettings, encode_folder
    from dptdr.search.vectors.workers import encode_in_processes

    if ray is not None and part[1] > 1:
        raise ConfigError("expected ray or a part, got both: ray does all parts")
    device = resolve_device(device)
    load_one = functools.partial(
        _fast_encoder, encoder, backbone=backbone, device=device, dtype=weights
    )
    if isinstance(encoder, Encoder) and (processes > 1 or ray is not None):
        raise ConfigError(
            "expected the folder or name of an encoder, which each process loads, got a loaded one"
        )
    folder, work = Path(data), Path(out)
    settings = EncodeSettings(shard_size=shard_size, dtype=dtype, part=part[0], parts=part[1])
    source = source_of(folder)
    read = functools.partial(read_documents, folder)
    if limit is not None:
        if ray is not None:
            raise ConfigError("expected ray or a limit, got both: ray reads the whole corpus")
        read = functools.partial(_first_documents, folder, limit=limit)
        source = replace(
            source,
            fingerprint=f"{source.fingerprint} first {limit}",
            count=min(limit, source.count or limit),
        )
    with _phases(progress)("encode") as on_progress:
        if ray is not None:
            # A worker on an accelerator has it for itself.
            cluster = Cluster(ray, workers=processes, gpus=0 if device == "cpu" else 1)
            return encode_on_ray(
                load_one,
                folder,
                out=work,
                source=source,
                settings=settings,
                cluster=cluster,
                overwrite=overwrite,
                on_progress=on_progress,
            )
        if processes == 1:
            return encode_folder(
                load_one(),
                read(),
                out=work,
                source=source,
                settings=settings,
                overwrite=overwrite,
                on_progress=on_progress,
            )
        return encode_in_processes(
            load_one,
            read,
            out=work,
            source=source,
            settings=settings,
            processes=processes,
            overwrite=overwrite,
            on_progress=on_progress,
        )


def build_index(
    data: AnyPath,
    encoder: AnyEncoder | None = None,
    *,
    out: AnyPath,
    vectors: AnyPath | None = None,
    index_type: str = "auto",
    options: dict[str, int] | None = None,
    dimensions: int | None = None,
    quantize: str | None = None,
    bm25: bool = False,
    language: str | None = None,
    seed: int | None = None,
    threads: int = 0,
    memory_bytes: int | None = None,
    overwrite: bool = False,
    device: str = "auto",
    progress: bool = True,
) -> SearchIndex:
    """Build an index over data, or over a vector folder that :func:`encode` wrote.

    Args:
        data: A BEIR folder, whose corpus is encoded first, or a vector folder.
        encoder: Encodes the passages, and the queries of later searches.
        out: The index folder.
        vectors: Where to put the vectors of a BEIR folder; ``OUT.vectors`` by default.
        index_type: ``auto`` chooses by count and memory; or ``exact``, ``hnsw``, ``hnsw-sq``,
            ``ivf-sq``, ``ivf-pq``, ``rabitq``.
        options: Options of the type, such as ``{"M": 48, "ef_search": 200}``.
        dimensions: Search the first numbers of each vector only, and the best hits again by all.
        quantize: Search exactly over ``float16``, ``int8`` or ``binary`` numbers, and the best
            hits again by full vectors.
        bm25: Index the words as well, for hybrid search.
        language: Language of the words, such as ``german``; told by the texts by default.
        seed: Decides samples, clusters and rotations; for types with lists only.
        threads: Threads, 0 for all cores; with 1 the same vectors give the same bytes.
        memory_bytes: Memory that ``auto`` may plan with; half of what is free by default.
        overwrite: Replace whatever index, and vectors of a BEIR folder, are there.
        device: Torch device; ``auto`` takes cuda, mps or cpu.
        progress: Show progress on standard error.

    Returns:
        The index, ready for texts if an encoder was given.
    """
    from dptdr.search.indexes.building import BuildSettings
    from dptdr.search.indexes.building import build_index as build
    from dptdr.search.vectors.manifest import MANIFEST

    out, folder = Path(out), Path(data)
    encoder = None if encoder is None else _encoder(encoder, device=device)
    if not (folder / MANIFEST).is_file():
        if encoder is None:
            raise ConfigError("expected an encoder for the texts of a data folder, got none")
        folder = Path(vectors) if vectors is not None else out.with_name(f"{out.name}.vectors")
        encode(data, encoder, out=folder, overwrite=overwrite, progress=progress)
    settings = BuildSettings(
        seed=seed,
        threads=threads,
        memory_bytes=memory_bytes,
        options=options or {},
        dimensions=dimensions,
        quantize=quantize,
        bm25=bm25,
        language=language,
    )
    with _phases(progress)("index") as on_progress:
        index, choice = build(
            VectorFolder(folder),
            out=out,
            index_type=index_type,
            settings=settings,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    if choice.warning is not None:
        warnings.warn(choice.warning, stacklevel=2)
    return SearchIndex(index, encoder, where=out)


def open_index(
    path: AnyPath,
    encoder: AnyEncoder | None = None,
    *,
    database: str | None = None,
    hybrid: str | None = None,
    dense_weight: float = 0.5,
    rerank: str | None = None,
    rerank_top: int = 50,
    device: str = "auto",
) -> SearchIndex:
    """Open an index to search texts in.

    Args:
        path: The index folder, or the index's name in ``database``.
        encoder: Encodes the queries.
        database: Address of the PostgreSQL or Qdrant that holds it.
        hybrid: Merge with BM25 by ``rrf``, ``min-max`` or ``z-score``.
        dense_weight: Share of the vectors in a merge, 0 to 1.
        rerank: Cross-encoder (name or folder) that ranks the best hits again.
        rerank_top: Hits that it scores for each query.
        device: Torch device; ``auto`` takes cuda, mps or cpu.

    Returns:
        The index; close it if it lives in a database.
    """
    from dptdr.search.indexes.local import open_index as open_local
    from dptdr.search.rerank import cross_encoder
    from dptdr.search.stores.addresses import open_database

    index = open_local(path) if database is None else open_database(database, str(path))
    try:
        return SearchIndex(
            index,
            None if encoder is None else _encoder(encoder, device=device),
            hybrid=hybrid,
            dense_weight=dense_weight,
            scorer=None if rerank is None else cross_encoder(rerank, device=resolve_device(device)),
            rerank_top=rerank_top,
            where=path,
        )
    except BaseException:
        if not isinstance(index, LocalIndex):
            index.close()
        raise


def retrieve(
    data: AnyPath,
    system: SearchIndex | AnyEncoder,
    *,
    split: str = "test",
    id_prefix: str | None = None,
    depth: int = 100,
    limit: int | None = None,
    keep_identical: bool = False,
    out: AnyPath | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: bool = True,
) -> Run:
    """Rank passages for all judged queries of a split.

    Args:
        data: The data.
        system: An index to search, or an encoder, ``bm25`` or ``bm25:LANGUAGE`` to rank the data's
            own corpus with.
        split: Whose judged queries are asked.
        id_prefix: Ask the queries whose ids begin so instead, judged or not.
        depth: Passages for each query.
        limit: Ask only the first so many queries.
        keep_identical: Whether a query that is a passage of the data may find itself.
        out: Write a TREC run file here.
        device: Torch device; ``auto`` takes cuda, mps or cpu.
        threads: Threads of BM25; one for each core by default.
        progress: Show progress on standard error.

    Returns:
        Query id to hits, best first.
    """
    from dptdr.evaluation import write_run
    from dptdr.search.ranking import judged_queries, prefixed_queries, rank

    folder = BeirFolder(data)
    if id_prefix is not None:
        queries = prefixed_queries(folder, id_prefix, limit=limit)
    else:
        queries, _ = judged_queries(folder, split, limit=limit)
    if isinstance(system, SearchIndex):
        run = system.run(queries, depth=depth, keep_identical=keep_identical)
        name = system.index.origin.encoder if system.encoder is None else system.encoder.name
    else:
        ranking = rank(
            _system(system, device=device),
            folder,
            queries=queries,
            depth=depth,
            threads=threads or os.cpu_count() or 1,
            keep_identical=keep_identical,
            phase=_phases(progress),
        )
        run, name = ranking.run, ranking.system
    if out is not None:
        # A run file separates its fields by white space.
        write_run(Path(out), run, tag="_".join(name.split()))
    return run


def evaluate(
    data: AnyPath,
    system: AnyEncoder | Run,
    *,
    split: str = "test",
    measures: Sequence[str] = (),
    depth: int | None = None,
    limit: int | None = None,
    keep_identical: bool = False,
    run_out: AnyPath | None = None,
    protocol: Literal["msmarco", "nq"] | None = None,
    passages: AnyPath | None = None,
    queries: AnyPath | None = None,
    matching: Literal["string", "regex"] = "string",
    strict: bool = False,
    device: str = "auto",
    dtype: str = "float32",
    threads: int | None = None,
    progress: bool = True,
) -> EvaluationReport:
    """Measure a system on the judged queries of a split; one without an answer counts as 0.

    Args:
        data: The data; with ``protocol`` the file of judgements (for ``nq`` of questions).
        system: An encoder, ``bm25`` or ``bm25:LANGUAGE``, a run, or the path of a TREC run file.
        split: Whose judged queries are asked.
        measures: As ir_measures names them; nDCG@10, RR@10 and R@100 by default.
        depth: Passages ranked for each query; what the measures need by default, at least 100.
        limit: Ask only the first so many queries.
        keep_identical: Whether a query that is a passage of the data may find itself.
        run_out: Write the ranking to this TREC run file.
        protocol: Measure a run file by official rules.
        passages: For ``nq``: psgs_w100.tsv or corpus.jsonl that the run names.
        queries: For ``nq``: queries.jsonl that tells which id is which question.
        matching: For ``nq``: answers are texts, or regular expressions.
        strict: For ``nq``: refuse answers that match every passage or none.
        device: Torch device; ``auto`` takes cuda, mps or cpu.
        dtype: Number type of the backbone's weights.
        threads: Threads of BM25, or processes of ``nq``; one for each core by default.
        progress: Show progress on standard error.

    Returns:
        The report: ``measures`` to means, ``per_query`` to values.
    """
    from dptdr.evaluation import write_run
    from dptdr.search.ranking import judged_queries, measure, needed_depth, rank

    threads = threads or os.cpu_count() or 1
    if protocol is not None:
        return _by_protocol(
            protocol,
            qrels=Path(data),
            run=system,
            passages=passages,
            queries=queries,
            matching=matching,
            strict=strict,
            workers=threads,
            phase=_phases(progress),
        )
    folder = BeirFolder(data)
    asked, judged = judged_queries(folder, split, limit=limit)
    depth = depth or needed_depth(measures)
    ranking = rank(
        system if isinstance(system, dict) else _system(system, device=device, dtype=dtype),
        folder,
        queries=asked,
        depth=depth,
        threads=threads,
        keep_identical=keep_identical,
        phase=_phases(progress),
    )
    report = measure(ranking, folder, split=split, qrels=judged, measures=measures, depth=depth)
    if run_out is not None:
        write_run(Path(run_out), ranking.run, tag="_".join(ranking.system.split()))
    return report


def compare(
    reports: Sequence[EvaluationReport | AnyPath],
    *,
    measures: Sequence[str] | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare systems with the first one by paired tests, query by query.

    Args:
        reports: What :func:`evaluate` returned, or files of ``dptdr evaluate --json``; the
            baseline first.
        measures: Measures to compare; all that the reports share by default.
        seed: Seed of the randomisation test.

    Returns:
        Means, differences, intervals and p-values.
    """
    read = [
        report if isinstance(report, EvaluationReport) else EvaluationReport.read(Path(report))
        for report in reports
    ]
    return compare_reports(read, measures=measures, seed=seed)


def serve(
    tasks: Sequence[AnyPath] = (),
    *,
    backbone: str | None = None,
    indexes: Sequence[AnyPath] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    **settings: Any,
) -> None:
    """Serve many tasks on one encoder over HTTP, until stopped.

    Args:
        tasks: Folders of tasks, each as ``FOLDER`` or ``NAME=FOLDER``.
        backbone: The encoder; the first task's by default.
        indexes: Folders of indexes, each as ``FOLDER`` or ``TASK=FOLDER``.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        **settings: Fields of :class:`dptdr.serving.settings.ServerSettings`.
    """
    from dptdr.serving.server import serve as run_server
    from dptdr.serving.start import server_settings

    with server_settings(
        tasks, backbone=backbone, indexes=indexes, host=host, **settings
    ) as complete:
        run_server(complete, host=host, port=port)


def encoder_of(
    *,
    task: Path | None = None,
    backbone: str | Backbone | None = None,
    device: str = "auto",
    dtype: str = "float32",
) -> Encoder:
    """Load the encoder of a task, or a bare backbone; of both, the task on that backbone.

    Args:
        task: Folder of the task.
        backbone: Name, folder, or with a task a loaded one.
        device: Torch device; ``auto`` takes cuda, mps or cpu.
        dtype: Number type of the backbone's weights.

    Returns:
        The encoder.
    """
    if isinstance(backbone, Backbone):
        if task is None:
            return Encoder(backbone)
        return Task(load_task(task, backbone=backbone), path=task)
    if task is None and backbone is None:
        raise ConfigError(
            "expected --task TASK or --backbone BACKBONE, got neither; --backbone minilm needs no "
            "training"
        )
    encoder = load_encoder(task=task, backbone=backbone, device=resolve_device(device), dtype=dtype)
    return encoder if task is None else Task(encoder, path=task)


def _backbone(given: AnyPath | Backbone, *, device: str) -> Backbone:
    if isinstance(given, Backbone):
        return given
    return Backbone.load(str(given), device=resolve_device(device))


def _encoder(given: AnyEncoder, *, device: str, dtype: str = "float32") -> Encoder:
    return given if isinstance(given, Encoder) else load(given, device=device, dtype=dtype)


def _system(given: AnyEncoder, *, device: str, dtype: str = "float32") -> Encoder | Path | str:
    if isinstance(given, str) and given.partition(":")[0] == "bm25":
        return given
    if not isinstance(given, Encoder) and Path(given).is_file():
        return Path(given)
    return _encoder(given, device=device, dtype=dtype)


def _first_documents(folder: Path, *, limit: int) -> Iterator[Document]:
    return itertools.islice(read_documents(folder), limit)


def _fast_encoder(given: AnyEncoder, *, backbone: str | None, device: str, dtype: str) -> Encoder:
    """Return an encoder that is fast at encoding and can no longer be trained."""
    if isinstance(given, Encoder):
        return given
    encoder = load(given, backbone=backbone, device=device, dtype=dtype)
    encoder.only_encode()
    return encoder


def resolve_device(name: str) -> str:
    """Return a torch device that is there, or refuse the name."""
    import torch

    accelerator = "cuda" if torch.cuda.is_available() else None
    if accelerator is None and torch.backends.mps.is_available():
        accelerator = "mps"
    if name == "auto":
        return accelerator or "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = "cpu" if accelerator is None else f"cpu or {accelerator}"
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device: expected one that is there, got '{name}' ({reason}); take auto, {there}"
        ) from None
    return name


def _set_threads(threads: int | None) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)


def _note(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _phases(progress: object) -> Phase:
    return progress_bar if progress else _silent


@contextmanager
def _silent(what: str) -> Iterator[Callable[[int, int], None]]:
    del what
    yield lambda done, total: None


def _by_protocol(
    protocol: Literal["msmarco", "nq"],
    *,
    qrels: Path,
    run: AnyEncoder | Run,
    passages: AnyPath | None,
    queries: AnyPath | None,
    matching: Literal["string", "regex"],
    strict: bool,
    workers: int,
    phase: Phase,
) -> EvaluationReport:
    from dptdr.evaluation.protocols.reports import measure_msmarco, measure_nq

    if not isinstance(run, Path | str):
        raise ConfigError(f"protocol {protocol}: expected the path of a run file as system")
    if protocol == "msmarco":
        return measure_msmarco(qrels=qrels, run=Path(run))
    if passages is None:
        raise ConfigError("protocol nq: expected the passages that the run names, got none")
    with phase("match answers") as on_progress:
        return measure_nq(
            qrels=qrels,
            run=Path(run),
            passages=Path(passages),
            queries=None if queries is None else Path(queries),
            matching=matching,
            strict=strict,
            workers=workers,
            on_progress=on_progress,
        )
