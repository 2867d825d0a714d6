"""Training groups read from a file, excluding dev queries."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dptdr.data.tokens import TokenTexts
from dptdr.data.training_files import GroupFile, read_records
from dptdr.data.training_records import DROPPED, count_dropped
from dptdr.errors import TrainingError
from dptdr.io.beir import BeirFolder
from dptdr.io.identical import own_passages
from dptdr.io.ids import normalised
from dptdr.io.intarray import as_numbers, int_array
from dptdr.records import Qrels

_POSITIVE_FIELDS = ("positives", "positive_passages", "positive_document_ids", "positive_ctxs")


class FileGroups(GroupFile):
    """Groups from a training file: mined negatives, or dptdr's, Tevatron's or DPR's format.

    Dev queries (which would leak answers) and queries without a positive are skipped and counted,
    and so are negatives that are also a positive of their query.
    The file is read through once, so malformed JSON is found before training starts; each group is
    then read on demand.

    Args:
        held_out: Ids and texts of the dev queries.
        qrels: Judgements that no query may have of a passage with its own id; see
            :func:`dptdr.io.identical.check_not_judged`.
        keep_identical: Allow a query that is also a passage as its own negative.

    Raises:
        DataError: If the file is missing or malformed; names file, line and field.
        TrainingError: If no group is left.
    """

    def __init__(
        self,
        path: Path,
        *,
        folder: BeirFolder,
        held_out: Mapping[str, str],
        tokens: TokenTexts | None = None,
        qrels: Qrels | None = None,
        keep_identical: bool = False,
    ) -> None:
        super().__init__(path, folder=folder, tokens=tokens)
        self.held_out = 0
        self.without_positive = 0
        dropped = 0
        texts = {normalised(text) for text in held_out.values()}
        ids = set(held_out)
        # Ids in foreign files are arbitrary.
        if self.format in ("mined", "groups"):
            if not keep_identical:
                self.own = own_passages(folder.queries(), folder.passages(), qrels=qrels)
            # The same text may have a second id in the folder.
            ids |= {query.id for query in folder.queries() if normalised(query.text) in texts}
        rows = int_array()
        of_tokens = self.format == "groups" and tokens is not None and _first_is_tokens(path)
        if of_tokens and tokens is not None:
            texts |= {normalised(tokens.canonical(text)) for text in held_out.values()}
        for row, (_, record) in enumerate(read_records(path)):
            if of_tokens and tokens is not None and record.get("query"):
                record = {**record, "query": tokens.decode(record["query"])}
            if _is_held_out(record, ids=ids, texts=texts):
                self.held_out += 1
            elif not next((record[f] for f in _POSITIVE_FIELDS if f in record), None):
                self.without_positive += 1
            else:
                rows.append(row)
                dropped += count_dropped(record, format=self.format)
        self.rows = as_numbers(rows)
        if not len(self):
            raise TrainingError(
                f"{path}: no training groups left; {self.held_out} belong to dev queries, "
                f"{self.without_positive} have no positive"
            )
        if dropped:
            sys.stderr.write(f"{path}: dropped {dropped:,} {DROPPED}\n")


def _first_is_tokens(path: Path) -> bool:
    _, record = next(read_records(path))
    return isinstance(record.get("query"), list)


def _is_held_out(record: Mapping[str, Any], *, ids: set[str], texts: set[str]) -> bool:
    text = next((record[f] for f in ("query", "query_text", "question") if f in record), None)
    if isinstance(text, str):
        # Ids in foreign files are arbitrary, so compare texts.
        return normalised(text) in texts
    return str(record.get("query_id")) in ids
