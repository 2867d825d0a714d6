"""Read data sets from ir_datasets, such as ``ir:msmarco-passage/train``."""

import importlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from dptdr.data.formats.source_data import SourceData, UniqueIds
from dptdr.errors import DataError
from dptdr.records import Passage, Qrels, Query

PREFIX = "ir:"


def read_ir_datasets(source: str) -> SourceData:
    """Read one or several ir_datasets that share a corpus.

    For example, ``ir:msmarco-passage/train,msmarco-passage/dev/small`` gives the splits ``train``
    and ``dev.small``.

    Raises:
        DataError: If ir_datasets is not installed or the data set is unknown.
    """
    try:
        ir_datasets = importlib.import_module("ir_datasets")
    except ImportError:
        raise DataError(
            f"'{source}' needs ir_datasets; run `pip install 'dptdr[datasets]'`"
        ) from None
    names = [name.strip().removeprefix(PREFIX) for name in source.split(",")]
    datasets = {name: _load(ir_datasets, name) for name in names}
    if len({name.split("/")[0] for name in names}) > 1:
        raise DataError(
            f"'{source}': expected data sets that share a corpus; convert one at a time"
        )
    first = names[0]
    if not datasets[first].has_docs():
        raise DataError(f"'{first}': the data set has no documents in ir_datasets")
    counted: Counter[str] = Counter()
    expected: dict[str, int] = {}
    for name, dataset in datasets.items():
        for part, said in dataset.metadata().items():
            wanted = part in {"queries", "qrels"} or (part == "docs" and name == first)
            # User-defined data sets have no published counts.
            if wanted and "count" in said:
                expected[f"{name} {part}"] = said["count"]
    qrels = {
        name.partition("/")[2].replace("/", ".") or "test": _qrels(name, dataset, counted)
        for name, dataset in datasets.items()
        if dataset.has_qrels()
    }
    return SourceData(
        passages=_passages(first, datasets[first], counted),
        queries=_queries(datasets, counted),
        qrels=qrels,
        counted=counted,
        expected=expected,
        about={"ir_datasets": getattr(ir_datasets, "__version__", "unknown"), "names": names},
    )


def _load(ir_datasets: Any, name: str) -> Any:
    try:
        return ir_datasets.load(name)
    except KeyError:
        raise DataError(f"unknown data set '{name}' in ir_datasets; see ir-datasets.com") from None


def _text(record: Any, *names: str) -> str:
    found = next((getattr(record, name) for name in names if hasattr(record, name)), None)
    return "" if found is None else str(found)


def _passages(name: str, dataset: Any, counted: Counter[str]) -> Iterator[Passage]:
    for document in dataset.docs_iter():
        counted[f"{name} docs"] += 1
        text = _text(document, "text", "body", "abstract")
        # Collections with other fields define their default text.
        text = text or _text_of_default(document)
        yield Passage(str(document.doc_id), text, _text(document, "title", "document_title"))


def _text_of_default(document: Any) -> str:
    return str(document.default_text()) if hasattr(document, "default_text") else ""


def _queries(datasets: dict[str, Any], counted: Counter[str]) -> Iterator[Query]:
    seen = UniqueIds()
    for name, dataset in datasets.items():
        if not dataset.has_queries():
            continue
        for query in dataset.queries_iter():
            counted[f"{name} queries"] += 1
            if seen.add(str(query.query_id)):
                text = _text(query, "text", "title", "query") or _text_of_default(query)
                yield Query(str(query.query_id), text)


def _qrels(name: str, dataset: Any, counted: Counter[str]) -> Qrels:
    qrels: Qrels = {}
    for judgement in dataset.qrels_iter():
        counted[f"{name} qrels"] += 1
        grades = qrels.setdefault(str(judgement.query_id), {})
        grades[str(judgement.doc_id)] = int(judgement.relevance)
    return qrels
