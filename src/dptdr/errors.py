"""The errors that dptdr raises.

::

    DptdrError                  anything below; the command line prints it as one line, exit code 2
    |-- DataError               a data file is missing or broken (names file, line, field)
    |-- OutputError             an output cannot be written, is in use, or has other settings
    |-- ConfigError             a recipe, setting or option is wrong (lists all problems)
    |-- EvaluationError         run, qrels or measures do not fit together
    |-- NegativesError          mining cannot go on
    |-- BackboneError           a backbone cannot be loaded or used
    |   `-- UnsupportedBackbone a prompt cannot reach every layer of it
    |-- BundleError             a task bundle is missing, broken or of an unknown format
    |   `-- WrongBackbone       the bundle belongs to another backbone
    |-- VectorsError            a vector folder or an index is broken or does not fit
    |   |-- NoSuchField         a filter names a metadata field that no passage has
    |   `-- WrongPrompt         the vectors were made by another prompt or backbone
    |-- TrainingError           training cannot start or go on
    |   `-- NoGain              a prompt trained without labels is no better; exit code 3
    `-- ServingError            the server refuses a task or a request

Every message says what was expected, what came, and what to do about it. Programming mistakes stay
``ValueError`` and ``TypeError``.
"""

from pathlib import Path


class DptdrError(Exception):
    """Base class of dptdr's errors."""

    exit_code = 2


class DataError(DptdrError):
    """A data file is missing or broken.

    Args:
        message: What was expected and what came.
        path: The file, where one is concerned.
        line: Line number in the file, counted from 1.
        row: Row number, counted from 1, where there are no lines: in Parquet or Python objects.
        field: Name of the field, where one is concerned.
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
    """An output cannot be written, another process writes it, or it was made with other settings.

    Args:
        message: What is wrong and what to do.
        path: The output.
    """

    def __init__(self, message: str, *, path: Path | None = None) -> None:
        self.path = path
        self.reason = message
        super().__init__(message if path is None else f"{path}: {message}")


class ConfigError(DptdrError):
    """A recipe, setting or option is wrong; the message lists every problem found."""


class EvaluationError(DptdrError):
    """Run, qrels or measures do not fit together."""


class NegativesError(DptdrError):
    """Negative mining cannot go on."""


class BackboneError(DptdrError):
    """A backbone cannot be loaded or used."""


class UnsupportedBackbone(BackboneError):
    """A prompt cannot be proved to reach every layer of this backbone."""


class BundleError(DptdrError):
    """A task bundle is missing, broken or of an unknown format."""


class WrongBackbone(BundleError):
    """A task bundle belongs to another backbone."""


class VectorsError(DptdrError):
    """A vector folder or an index is broken or does not fit."""


class NoSuchField(VectorsError):
    """A filter names a metadata field that no passage of the index has."""


class WrongPrompt(VectorsError):
    """Vectors were made by another prompt or backbone."""


class TrainingError(DptdrError):
    """Training cannot start or cannot go on."""


class NoGain(TrainingError):
    """A prompt trained without labels is no better than the backbone."""

    exit_code = 3


class ServingError(DptdrError):
    """The server refuses a task or a request."""
