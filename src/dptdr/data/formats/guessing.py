"""Detect the format of a source from its file names."""

from pathlib import Path

from dptdr.data.formats.document_folder import document_files
from dptdr.data.formats.source_data import find_file
from dptdr.data.formats.table_rows import is_table
from dptdr.data.formats.tablesource import DATASET_DICT, DATASET_STATE, table_files
from dptdr.data.training_files import read_records
from dptdr.errors import DataError
from dptdr.io.beir import CORPUS, QRELS, QUERIES


def guess_format(source: Path) -> str:
    """Detect the format of a file or folder.

    Raises:
        DataError: If it does not exist, or the format is not recognised.
    """
    found = _of_folder(source) if source.is_dir() else _of_file(source)
    if found is None:
        what = "no such file or folder" if not source.exists() else "unrecognised data"
        raise DataError(
            f"{what}; expected a table (CSV, TSV, JSON lines, Parquet), a folder of tables, "
            "documents, or one of the formats of `dptdr data convert --help`",
            path=source,
        )
    return found


def _of_file(path: Path) -> str | None:
    if path.name.startswith("top1000"):
        return "msmarco-top1000"
    if "triples" in path.name:
        return "msmarco-triples"
    if is_table(path) and path.is_file():
        return "tevatron" if _is_tevatron(path) else "table"
    return "documents" if document_files(path) else None


def _of_folder(folder: Path) -> str | None:
    corpus = find_file(folder, CORPUS)
    if corpus is not None:
        is_beir = find_file(folder, QUERIES) or (folder / QRELS).is_dir()
        return "beir" if is_beir or not _is_tevatron(corpus) else "tevatron"
    if find_file(folder, "collection.tsv"):
        return "msmarco"
    if find_file(folder, "psgs_w100.tsv") or any(folder.glob("biencoder-*.json*")):
        return "dpr"
    if (folder / DATASET_DICT).is_file() or (folder / DATASET_STATE).is_file():
        return "table"
    tables = table_files(folder)
    # Document folders may contain JSON settings, and table folders a README.
    if any(path.suffix != ".json" for path in tables):
        return "tevatron" if any(map(_is_tevatron, tables)) else "table"
    if document_files(folder):
        return "documents"
    return "table" if tables else None


def _is_tevatron(path: Path) -> bool:
    if not path.name.removesuffix(".gz").endswith(".jsonl"):
        return False
    try:
        _, record = next(read_records(path))
    except (DataError, StopIteration):
        return False
    return not {"positive_passages", "positive_document_ids", "docid"}.isdisjoint(record)
