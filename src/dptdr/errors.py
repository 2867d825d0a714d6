"""Exceptions raised by dptdr.

::

    DptdrError                  base class; the command line prints one line and exits with code 2
    |-- DataError               a data file is missing or malformed (names file, line, field)
    |-- OutputError             an output cannot be written, is in use, or has other settings
    |-- ConfigError             a setting or option is invalid (lists all problems)
    |-- EvaluationError         run, qrels and measures are inconsistent
    |-- NegativesError          negative mining cannot continue
    |-- BackboneError           a backbone cannot be loaded or used
    |   `-- UnsupportedBackbone a prompt cannot reach all of its layers
    |-- BundleError             a task bundle is missing, damaged or in an unknown format
    |   `-- WrongBackbone       the bundle belongs to a different backbone
    |-- VectorsError            a vector folder or an index is damaged or does not match
    |   |-- NoSuchField         a filter names a metadata field that no passage has
    |   `-- WrongPrompt         the vectors come from a different prompt or backbone
    |-- TrainingError           training cannot start or continue
    |   `-- NoGain              a prompt trained without labels is worse; exit code 3
    `-- ServingError            the server rejects a task or a request

    A message says what was expected, what was found, and what to do about it where that is not
    obvious. Programming errors raise ``ValueError`` and ``TypeError``.
"""

from pathlib import Path


class DptdrError(Exception):
    """Base class of all dptdr errors; messages are a single line, whatever they quote."""

    exit_code = 2

    def __str__(self) -> str:
        return super().__str__().replace("\r", "\\r").replace("\n", "\\n")


class DataError(DptdrError):
    """A data file is missing or malformed.

    Args:
        message: The expected and the actual value.
        path: The file, if any.
        line: Line number in the file, from 1.
        row: Row number, from 1, in data without lines: Parquet or Python objects.
        field: Name of the field, if any.
    """

    def __init__(
        self,
        message: str,
        *,
        path: Path | str | None = None,
        line: int | None = None,
        row: int | None = None,
        field: str | None = None,
    ) -> None:
        self.path = None if path is None else str(path)
        self.line = line
        self.row = row
        self.field = field
        self.reason = message
        parts = [
            None if path is None else f"{path}",
            None if line is None else f"line {line}",
            None if row is None else f"row {row}",
            None if field is None else f"field '{field}'",
        ]
        where = ", ".join(part for part in parts if part)
        super().__init__(f"{where}: {message}" if where else message)


class OutputError(DptdrError):
    """An output cannot be written, is in use by another process, or has other settings."""

    def __init__(self, message: str, *, path: Path | None = None) -> None:
        self.path = path
        self.reason = message
        super().__init__(message if path is None else f"{path}: {message}")


class ConfigError(DptdrError):
    """A setting or option is invalid; the message lists all problems."""


class EvaluationError(DptdrError):
    """Run, qrels and measures are inconsistent."""


class NegativesError(DptdrError):
    """Negative mining cannot continue."""


class BackboneError(DptdrError):
    """A backbone cannot be loaded or used."""


class UnsupportedBackbone(BackboneError):
    """A prompt cannot be shown to reach every layer of this backbone."""


class BundleError(DptdrError):
    """A task bundle is missing, damaged or in an unknown format."""


class WrongBackbone(BundleError):
    """A task bundle belongs to a different backbone."""


class VectorsError(DptdrError):
    """A vector folder or an index is damaged or does not match."""


class NoSuchField(VectorsError):
    """A filter names a metadata field that no passage of the index has."""


class WrongPrompt(VectorsError):
    """Vectors come from a different prompt or backbone."""


class TrainingError(DptdrError):
    """Training cannot start or continue."""


class NoGain(TrainingError):
    """A prompt trained without labels is worse than the backbone."""

    exit_code = 3


class ServingError(DptdrError):
    """The server rejects a task or a request."""
