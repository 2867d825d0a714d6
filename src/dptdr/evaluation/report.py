"""Evaluation report files, the input of comparisons."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dptdr.errors import DataError
from dptdr.io.atomic import read_json, write_json
from dptdr.records import Qrels

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """Evaluation of one system on one split of a data set.

    Attributes:
        system: Display name of the system.
        data: Display name of the data set.
        split: Name of the split; empty if a run file was evaluated against a qrels file.
        judgements_fingerprint: SHA-256 of the judgements, equal for comparable reports.
        protocol: ``ir_measures``, ``msmarco`` or ``nq``.
        measures: Measure name to mean.
        per_query: Measure name to query id to value.
        queries: Number of queries in the means.
        details: Other facts: depth, fingerprints, definitions.
    """

    system: str
    data: str
    split: str
    judgements_fingerprint: str
    protocol: str
    measures: dict[str, float]
    per_query: dict[str, dict[str, float]]
    queries: int
    details: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the report as JSON, atomically."""
        write_json(path, self.as_json())

    def as_json(self) -> dict[str, Any]:
        """Convert the report to plain JSON values."""
        return {
            "format": FORMAT,
            "system": self.system,
            "data": self.data,
            "split": self.split,
            "judgements_fingerprint": self.judgements_fingerprint,
            "protocol": self.protocol,
            "measures": self.measures,
            "per_query": self.per_query,
            "queries": self.queries,
            **{key: value for key, value in self.details.items() if key not in _FIELDS},
        }

    @classmethod
    def read(cls, path: Path) -> "EvaluationReport":
        """Read a report.

        Raises:
            DataError: If the file is missing, not JSON, has another format, or lacks a field or has
                an invalid one; names file and field.
        """
        value = read_json(path)
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            found = value.get("format") if isinstance(value, dict) else type(value).__name__
            raise DataError(
                f"expected an evaluation report of format {FORMAT}, got {found}; "
                "create one with `dptdr evaluate --json`",
                path=path,
            )
        known = {name: _checked(value, name, path=path) for name in _FIELDS if name != "format"}
        _check_values({"": known["measures"]}, field="measures", path=path)
        _check_values(known["per_query"], field="per_query", path=path)
        details = {key: entry for key, entry in value.items() if key not in _FIELDS}
        return cls(**known, details=details)


_FIELDS: dict[str, type] = {
    "format": int,
    "system": str,
    "data": str,
    "split": str,
    "judgements_fingerprint": str,
    "protocol": str,
    "measures": dict,
    "per_query": dict,
    "queries": int,
}


def judgements_fingerprint(qrels: Mapping[str, Mapping[str, int]] | Qrels) -> str:
    """Compute the SHA-256 of judgements, ignoring their order."""
    digest = hashlib.sha256()
    for query_id in sorted(qrels):
        for passage_id in sorted(qrels[query_id]):
            line = f"{query_id}\t{passage_id}\t{qrels[query_id][passage_id]}\n"
            digest.update(line.encode("utf-8"))
    return digest.hexdigest()


def _checked(value: dict[str, Any], name: str, *, path: Path) -> Any:
    entry = value.get(name)
    if not isinstance(entry, _FIELDS[name]):
        found = "nothing" if name not in value else repr(entry)[:60]
        raise DataError(
            f"expected {_FIELDS[name].__name__}, got {found}; recreate the report with "
            "`dptdr evaluate --json`",
            path=path,
            field=name,
        )
    return entry


def _check_values(given: dict[str, Any], *, field: str, path: Path) -> None:
    for name, values in given.items():
        good = isinstance(values, dict) and all(
            type(value) in (int, float) and math.isfinite(value) for value in values.values()
        )
        if not good:
            what = "query" if name else "measure"
            where = f"{field}.{name}" if name else field
            raise DataError(f"expected one finite number per {what}", path=path, field=where)
