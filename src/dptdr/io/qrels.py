"""Reading judgements: BEIR's three tab-separated columns and TREC's four."""

from collections.abc import Iterator
from pathlib import Path

from dptdr.errors import DataError
from dptdr.io.textlines import numbered_lines
from dptdr.records import Judgement, Qrels

BEIR_HEADER = ("query-id", "corpus-id", "score")


def iterate_qrels(path: Path) -> Iterator[tuple[int, Judgement]]:
    """Yield the judgements of a qrels file as they stand, with their line numbers.

    Args:
        path: BEIR layout (``query-id TAB corpus-id TAB score``, header line or none) or TREC
            layout (``query-id 0 passage-id grade``, blanks or tabs).

    Yields:
        Line number, counted from 1, and the judgement.

    Raises:
        DataError: If the file is missing, the first line fits neither layout, a later line does
            not have the fields of the first, or a grade is no whole number.
    """
    path = Path(path)
    layout: str | None = None
    for number, text in numbered_lines(path):
        if layout is None:
            if tuple(text.split("\t")) == BEIR_HEADER:
                layout = "BEIR"
                continue
            layout = "BEIR" if text.count("\t") == 2 else "TREC"
        yield number, _parse(text, layout=layout, path=path, line=number)


def read_qrels(path: Path) -> Qrels:
    """Read a whole qrels file, BEIR or TREC layout.

    Args:
        path: The file; see :func:`iterate_qrels`.

    Returns:
        Query id to passage id to grade, in the order of the file.

    Raises:
        DataError: If the file is missing, empty or broken, or judges a pair twice with different
            grades; names file and line.
    """
    path = Path(path)
    qrels: Qrels = {}
    for number, judgement in iterate_qrels(path):
        grades = qrels.setdefault(judgement.query_id, {})
        before = grades.setdefault(judgement.passage_id, judgement.grade)
        if before != judgement.grade:
            raise DataError(
                f"query '{judgement.query_id}', passage '{judgement.passage_id}' has grade "
                f"{judgement.grade} here and {before} above; keep one of them",
                path=path,
                line=number,
            )
    if not qrels:
        raise DataError("expected judgements, the file holds none", path=path)
    return qrels


def _parse(text: str, *, layout: str, path: Path, line: int) -> Judgement:
    if layout == "BEIR":
        fields = [field.strip() for field in text.split("\t")]
        expected = "3 fields separated by tabs (query-id, corpus-id, score)"
        wrong = len(fields) != 3
        query_id, passage_id, grade = ("", "", "") if wrong else fields
    else:
        fields = text.split()
        expected = "4 fields (query-id, 0, passage-id, grade), or 3 separated by tabs"
        wrong = len(fields) != 4
        query_id, _, passage_id, grade = ("", "", "", "") if wrong else fields
    if wrong:
        raise DataError(f"expected {expected}, found {len(fields)}", path=path, line=line)
    for name, value in (("query-id", query_id), ("corpus-id", passage_id)):
        if not value:
            raise DataError("expected an id, found nothing", path=path, line=line, field=name)
    try:
        return Judgement(query_id, passage_id, int(grade))
    except ValueError:
        raise DataError(
            f"expected a whole number, found '{grade}'", path=path, line=line, field="score"
        ) from None
