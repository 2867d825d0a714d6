"""Load the training groups and dev set of a run."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dptdr.config.training import TrainingConfig
from dptdr.data.tokens import TokenTexts
from dptdr.errors import ConfigError, DataError, TrainingError
from dptdr.io.atomic import sha256_file
from dptdr.io.beir import BeirFolder
from dptdr.io.identical import own_passages, report_own_passages
from dptdr.io.resume import recorded_result
from dptdr.records import Passage, Qrels, Query
from dptdr.training.filegroups import FileGroups
from dptdr.training.groups import (
    DevSet,
    Groups,
    QrelsGroups,
    draw_dev_ids,
    held_out_split,
    load_texts,
    sample_texts,
)

_INITIALISATION_TEXTS = 128
_GROUPS_LOOKED_AT = 64


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Training groups and dev set of a run."""

    groups: Groups
    dev: DevSet
    query_texts: list[str]
    passage_texts: list[str]
    facts: dict[str, Any]


def load_data(
    folder: BeirFolder,
    config: TrainingConfig,
    *,
    negatives: Path | None = None,
    tokens: TokenTexts | None = None,
    min_grade: int = 1,
) -> TrainingData:
    """Load training groups and dev set from a data folder.

    Args:
        negatives: Training file used instead of the train qrels: mined negatives, groups, or a file
            in Tevatron's or DPR's format. Its dev queries are skipped.
        tokens: Decodes training files of token ids.
        min_grade: Minimum grade of a positive in the train qrels.

    Raises:
        ConfigError: If distillation is requested but there are no teacher scores.
        DataError: If a file is missing or malformed.
        TrainingError: If there are no queries to train on or to select by.
    """
    train, judged = _judgements(folder, config, needs_train=negatives is None)
    if negatives is not None:
        train = {}
    dev, corpus_ids = _drawn_dev(folder, judged, config)
    positives = _positives(train, min_grade=min_grade)
    queries, passages = load_texts(
        folder, query_ids={*train, *judged}, passage_ids=positives | corpus_ids
    )
    groups: FileGroups | QrelsGroups
    facts: dict[str, Any] = {"data": folder.name, "data_fingerprint": folder.fingerprint()}
    if negatives is not None:
        _check_mined_on(negatives, folder)
        groups = FileGroups(
            negatives,
            folder=folder,
            held_out={q: queries[q] for q in judged},
            tokens=tokens,
            qrels=judged,
            keep_identical=config.keep_identical,
        )
        facts |= _file_facts(negatives, groups)
        _say_without_negatives(negatives, groups, config)
    else:
        keep = config.keep_identical
        groups = QrelsGroups(
            queries=queries,
            passages={p: passages[p].content for p in positives},
            qrels=_without_dev_texts(train, judged, queries),
            own={}
            if keep
            else own_passages(folder.queries(), folder.passages(), qrels=train | judged),
            min_grade=min_grade,
        )
        facts["train_queries_without_positive"] = groups.without_positive
    if config.distillation != "none":
        _check_teacher(groups, config)
    report_own_passages(len(groups.own))
    query_texts, passage_texts = sample_texts(groups, _INITIALISATION_TEXTS, seed=config.seed)
    return TrainingData(
        groups=groups,
        dev=_dev_set(dev, queries, [passages[p] for p in sorted(corpus_ids)], config),
        query_texts=query_texts,
        passage_texts=passage_texts,
        facts={
            **facts,
            "train_queries": len(groups),
            "dev_queries": len(dev),
            "dev_passages": len(corpus_ids),
            "dev_split": "dev" if folder.has_split("dev") else "held out from train",
        },
    )


def load_dev(folder: BeirFolder, identity: Mapping[str, Any]) -> DevSet:
    """Reload the dev queries and passages used by a run, from its data folder.

    Raises:
        TrainingError: If the folder's data differ from the run's.
    """
    expected, found = identity["data"]["data_fingerprint"], folder.fingerprint()
    if found != expected:
        raise TrainingError(
            f"{folder.path}: expected the run's data with fingerprint {expected}, got {found}; "
            "pass the folder the run was trained on"
        )
    names = ("dev_queries", "dev_passages", "keep_identical", "seed")
    config = TrainingConfig(**{name: identity[name] for name in names if name in identity})
    _, judged = _judgements(folder, config, needs_train=False)
    dev, corpus_ids = _drawn_dev(folder, judged, config)
    queries, passages = load_texts(folder, query_ids=set(dev), passage_ids=corpus_ids)
    return _dev_set(dev, queries, [passages[p] for p in sorted(corpus_ids)], config)


def _drawn_dev(folder: BeirFolder, judged: Qrels, config: TrainingConfig) -> tuple[Qrels, set[str]]:
    """Draw dev queries and the ids of the dev corpus."""
    dev, corpus_ids = draw_dev_ids(
        judged,
        [passage.id for passage in folder.passages()],
        queries=config.dev_queries,
        passages=config.dev_passages,
        seed=config.seed,
    )
    if not dev:
        raise TrainingError(f"{folder.path}: expected a dev query with a positive, got none")
    return dev, corpus_ids


def _dev_set(
    dev: Qrels, queries: Mapping[str, str], passages: list[Passage], config: TrainingConfig
) -> DevSet:
    return DevSet(
        queries=[Query(q, queries[q]) for q in sorted(dev)],
        passages=passages,
        qrels=dev,
        keep_identical=config.keep_identical,
    )


def _judgements(
    folder: BeirFolder, config: TrainingConfig, *, needs_train: bool
) -> tuple[Qrels, Qrels]:
    """Return train and dev qrels, holding out train queries if there is no dev split."""
    given = folder.has_split("dev")
    if given and not needs_train:
        return {}, folder.qrels("dev")
    train = folder.qrels("train")
    if given:
        return train, folder.qrels("dev")
    return held_out_split(train, max_queries=config.dev_queries, seed=config.seed)


def _positives(qrels: Qrels, *, min_grade: int) -> set[str]:
    return {p for judged in qrels.values() for p, grade in judged.items() if grade >= min_grade}


def _file_facts(path: Path, groups: FileGroups) -> dict[str, Any]:
    return {
        "training_file": path.name,
        "training_file_format": groups.format,
        "training_file_sha256": sha256_file(path),
        "train_queries_without_positive": groups.without_positive,
        "train_queries_left_out_as_dev": groups.held_out,
    }


def _check_mined_on(negatives: Path, folder: BeirFolder) -> None:
    """Reject negatives whose record says that they were mined from another corpus."""
    result = recorded_result(negatives)
    mined = result.get("corpus_sha256") if isinstance(result, dict) else None
    if mined is not None and mined != sha256_file(folder.corpus_path):
        raise DataError(
            f"mined from a corpus other than {folder.corpus_path}, so ids may mean other texts; "
            "mine again from this corpus",
            path=negatives,
        )


def _without_dev_texts(train: Qrels, dev: Iterable[str], queries: Mapping[str, str]) -> Qrels:
    """Drop train queries with the text of a dev query: they would leak the answers."""
    texts = {queries[q] for q in dev}
    return {q: judged for q, judged in train.items() if queries[q] not in texts}


def _say_without_negatives(path: Path, groups: FileGroups, config: TrainingConfig) -> None:
    looked_at = min(len(groups), _GROUPS_LOOKED_AT)
    if config.negatives_per_query and not any(groups[n].negatives for n in range(looked_at)):
        sys.stderr.write(
            f"{path}: no negatives in the first {looked_at} records; training with the batch's "
            "other passages only\n"
        )


def _check_teacher(groups: Groups, config: TrainingConfig) -> None:
    """Reject distillation without teacher scores: the loss would silently be 0."""
    for item in range(min(len(groups), _GROUPS_LOOKED_AT)):
        group = groups[item]
        positive, negative = len(group.positive_scores), len(group.negative_scores)
        if config.distillation == "margin-mse" and positive and negative:
            return
        if config.distillation == "kl" and positive + negative >= 2:
            return
    needed = "positives and negatives" if config.distillation == "margin-mse" else "passages"
    raise ConfigError(
        f"distillation '{config.distillation}': expected teacher scores of {needed} in the "
        f"training file, found none in the first {min(len(groups), _GROUPS_LOOKED_AT)} groups; "
        "mine with a teacher, or train without distillation"
    )
