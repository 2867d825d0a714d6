"""Read DPR's files: Wikipedia passages, training contexts, and questions with answers."""

import re
import shutil
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dptdr.data.formats.msmarco import drop_positives, write_lines
from dptdr.data.formats.source_data import (
    PUBLISHED,
    SourceData,
    UniqueIds,
    find_file,
    need_folder,
    plain_name,
)
from dptdr.data.formats.tables import checked_id, quoted_rows
from dptdr.data.training_files import read_records
from dptdr.errors import DataError
from dptdr.io.lines import describe
from dptdr.records import Passage, Qrels, Query

_TRAINING = re.compile(r"biencoder-(?P<data>[\w]+)-(?P<split>\w+)\.json")
_QUESTIONS = re.compile(r"(?P<data>[\w]+)-(?P<split>\w+)\.qa\.csv")
_LAYOUT = (
    "psgs_w100.tsv, biencoder-DATA-SPLIT.json and DATA-SPLIT.qa.csv (each may be .gz; at least "
    "one of the first two)"
)


def read_dpr(source: Path) -> SourceData:
    """Read a folder of DPR files.

    Questions get the ids ``SPLIT-ROW``. Hard negatives are written to ``negatives-SPLIT.jsonl``,
    and question files are copied to ``answers/``. Without ``psgs_w100.tsv``, the training contexts
    form the corpus.

    Raises:
        DataError: If the folder contains no passages, or a training record is malformed.
    """
    need_folder(source, holds=_LAYOUT)
    wikipedia = find_file(source, "psgs_w100.tsv")
    training = _matching(source, _TRAINING)
    questions = _matching(source, _QUESTIONS)
    if wikipedia is None and not training:
        raise DataError(f"expected {_LAYOUT}, got no passages", path=source)
    counted: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    contexts = (passage for _, path in training for passage in _context_passages(path))
    files = [*([wikipedia] if wikipedia else []), *(path for _, path in training + questions)]

    def also(folder: Path) -> None:
        for split, path in training:
            records = (drop_positives(record, dropped) for record in _negatives(path, split))
            write_lines(folder / f"negatives-{split}.jsonl", records)
        if questions:
            (folder / "answers").mkdir()
        for _, path in questions:
            shutil.copy(path, folder / "answers" / path.name)

    return SourceData(
        passages=_wikipedia(wikipedia, counted) if wikipedia else _once(contexts),
        queries=_queries(training, questions, counted),
        qrels={split: _qrels(path, split) for split, path in training},
        files=files,
        counted=counted,
        dropped=dropped,
        expected=PUBLISHED,
        also=also,
        notes=[]
        if wikipedia
        else ["no psgs_w100.tsv: the corpus consists of the training contexts only"],
    )


def _matching(source: Path, pattern: re.Pattern[str]) -> list[tuple[str, Path]]:
    named = [(pattern.fullmatch(plain_name(path)), path) for path in sorted(source.iterdir())]
    found = [(match["split"], path) for match, path in named if match]
    repeated = [split for split, count in Counter(split for split, _ in found).items() if count > 1]
    if repeated:
        raise DataError(
            f"contains several files of split '{repeated[0]}'; convert one data set at a time",
            path=source,
        )
    return found


def _wikipedia(path: Path, counted: Counter[str]) -> Iterator[Passage]:
    seen = UniqueIds()
    for number, (passage_id, text, title) in quoted_rows(path, columns=("id", "text", "title")):
        if number == 1 and passage_id == "id":
            continue
        checked_id(passage_id, path=path, number=number, field="id")
        if not seen.add(passage_id):
            raise DataError(
                f"duplicate passage id '{passage_id}'; delete one of them", path=path, line=number
            )
        counted[plain_name(path)] += 1
        yield Passage(id=passage_id, text=text, title=title)


def _once(passages: Iterator[Passage]) -> Iterator[Passage]:
    seen = UniqueIds()
    return (passage for passage in passages if seen.add(passage.id))


def _context_passages(path: Path) -> Iterator[Passage]:
    for line, record in read_records(path):
        for field in ("positive_ctxs", "hard_negative_ctxs", "negative_ctxs"):
            for context in _contexts(record, field, path=path, line=line):
                yield Passage(
                    id=_passage_id(context, field, path=path, line=line),
                    text=str(context.get("text", "")),
                    title=str(context.get("title") or ""),
                )


def _contexts(
    record: Mapping[str, Any], field: str, *, path: Path, line: int
) -> list[dict[str, Any]]:
    value = record.get(field) or []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(
            f"expected a list of objects, got {describe(value)}", path=path, line=line, field=field
        )
    return value


def _passage_id(context: Mapping[str, Any], field: str, *, path: Path, line: int) -> str:
    found = context.get("passage_id", context.get("psg_id"))
    if found is None or not str(found).strip():
        raise DataError(
            "expected a 'passage_id' or 'psg_id' in each context, got none",
            path=path,
            line=line,
            field=field,
        )
    return str(found)


def _question(record: Mapping[str, Any], *, path: Path, line: int) -> str:
    question = record.get("question")
    if not isinstance(question, str):
        raise DataError(
            f"expected a string, got {describe(question)}", path=path, line=line, field="question"
        )
    return question


def _queries(
    training: list[tuple[str, Path]], questions: list[tuple[str, Path]], counted: Counter[str]
) -> Iterator[Query]:
    """Read questions; questions used for training keep their training ids."""
    known: dict[str, deque[str]] = {}
    for split, path in training:
        for row, (line, record) in enumerate(read_records(path)):
            counted[plain_name(path)] += 1
            query = Query(f"{split}-{row}", _question(record, path=path, line=line))
            known.setdefault(f"{split} {query.text.strip()}", deque()).append(query.id)
            yield query
    trained = {split for split, _ in training}
    for split, path in questions:
        prefix = f"{split}-qa" if split in trained else split
        for row, (number, (text, _)) in enumerate(
            quoted_rows(path, columns=("question", "answers"))
        ):
            if not text.strip():
                raise DataError("expected a question, got an empty string", path=path, line=number)
            counted[plain_name(path)] += 1
            waiting = known.get(f"{split} {text.strip()}")
            if waiting:
                waiting.popleft()
            else:
                yield Query(f"{prefix}-{row}", text)


def _qrels(path: Path, split: str) -> Qrels:
    qrels: Qrels = {}
    for row, (line, record) in enumerate(read_records(path)):
        positives = _contexts(record, "positive_ctxs", path=path, line=line)
        if positives:
            ids = [_passage_id(c, "positive_ctxs", path=path, line=line) for c in positives]
            qrels[f"{split}-{row}"] = dict.fromkeys(ids, 1)
    return qrels


def _negatives(path: Path, split: str) -> Iterator[dict[str, Any]]:
    for row, (line, record) in enumerate(read_records(path)):
        positives = _contexts(record, "positive_ctxs", path=path, line=line)
        hard = _contexts(record, "hard_negative_ctxs", path=path, line=line)
        if not positives or not hard:
            continue
        yield {
            "query_id": f"{split}-{row}",
            "positives": [_passage_id(c, "positive_ctxs", path=path, line=line) for c in positives],
            "negatives": [
                {
                    "id": _passage_id(context, "hard_negative_ctxs", path=path, line=line),
                    "sources": {"dpr": {"rank": rank, "score": context.get("score")}},
                }
                for rank, context in enumerate(hard, start=1)
            ],
        }
