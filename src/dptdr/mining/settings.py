"""Mining settings: sources, false-negative filtering, and their option syntax."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from dptdr.errors import ConfigError

Sampling = Literal["top", "uniform", "score"]
PositiveScore = Literal["min", "mean", "max"]
OutputFormat = Literal["dptdr", "tevatron"]
Kind = Literal["bm25", "backbone", "task", "run"]

BOUNDS = ("max_score", "absolute_margin", "relative_margin")
_FORMER_OPTIONS = ("ranks", "quota")
_OPTIONS = ("range_min", "range_max", "num_negatives", "sampling", "name")


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """One source of candidates."""

    name: str
    """Unique name of the source in the output."""
    kind: Kind
    value: str = ""
    """Task folder, backbone name, run file, or BM25 language."""
    range_min: int = 1
    """Best rank to use, counted from 1."""
    range_max: int = 200
    """Worst rank to use."""
    num_negatives: int = 30
    """Maximum number of negatives per query from this source."""
    sampling: Sampling = "top"
    """``top``: best ranks first; ``uniform``: uniformly at random; ``score``: weighted by score."""


@dataclass(frozen=True, kw_only=True)
class FilteringSettings:
    """Bounds on teacher scores; ``None`` for no bound."""

    max_score: float | None = None
    """Drop candidates with at least this score."""
    absolute_margin: float | None = None
    """Drop candidates scoring above the positive's score minus this margin."""
    relative_margin: float | None = None
    """Drop candidates scoring above the positive's score times (1 - margin), if that is above 0."""
    positive_score: PositiveScore = "mean"
    """Which positive to compare with if there are several."""

    @property
    def drops(self) -> bool:
        """True if any bound is set."""
        return any(getattr(self, name) is not None for name in BOUNDS)


@dataclass(frozen=True, kw_only=True)
class MiningSettings:
    """Settings of a mining run."""

    sources: tuple[SourceSettings, ...]
    filtering: FilteringSettings = FilteringSettings()
    seed: int = 0
    min_grade: int = 1
    """Minimum grade of a positive."""
    output: OutputFormat = "dptdr"
    block_queries: int = 256
    """Queries per block: at most one block is lost when interrupted."""


def parse_source(text: str, *, range_max: int, num_negatives: int) -> SourceSettings:
    """Parse a ``--source`` option: ``KIND[:VALUE][,OPTION=VALUE ...]``.

    Options are the fields of :class:`SourceSettings`, with the given defaults; version 0.1.0's
    ``ranks=A-B`` and ``quota=N`` are accepted too.

    Raises:
        ConfigError: If the option is malformed; the message says what is expected.
    """
    head, options = _split_options(text)
    kind, _, value = head.partition(":")
    if kind not in get_args(Kind) or (kind != "bm25" and not value):
        raise ConfigError(
            f"source '{text}': expected bm25, bm25:LANGUAGE, backbone:NAME, task:FOLDER or "
            "run:FILE, optionally followed by options, such as bm25,range_min=10,name=words"
        )
    first = _number(options, "range_min", 1, text=text)
    last = _number(options, "range_max", max(first, range_max), text=text)
    if first > last:
        raise ConfigError(f"source '{text}': expected range_min up to {last}, got {first}")
    sampling = options.get("sampling", "top")
    if sampling not in get_args(Sampling):
        raise ConfigError(f"source '{text}': expected sampling top, uniform or score")
    # Names appear in the output, which must not depend on a folder's location.
    short = {"task": Path(value).name, "run": Path(value).stem}.get(kind, value)
    name = options.get("name", f"{kind}:{short}" if short else kind)
    if not name:
        raise ConfigError(f"source '{text}': expected a name, got nothing")
    return SourceSettings(
        name=name,
        kind=cast(Kind, kind),
        value=value,
        range_min=first,
        range_max=last,
        num_negatives=_number(options, "num_negatives", num_negatives, text=text),
        sampling=cast(Sampling, sampling),
    )


def check_sources(sources: Sequence[SourceSettings]) -> None:
    """Require at least one source, and unique names.

    Raises:
        ConfigError: Otherwise.
    """
    if not sources:
        raise ConfigError("expected at least one --source, such as --source bm25")
    names = [source.name for source in sources]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ConfigError(
            f"expected unique source names, got '{doubled[0]}' twice; add ,name=SOMETHING"
        )


def check_filtering(filtering: FilteringSettings) -> None:
    """Validate the bounds.

    Raises:
        ConfigError: If a bound is out of range.
    """
    for name in BOUNDS:
        value = getattr(filtering, name)
        if value is not None and value != value:
            raise ConfigError(f"{name}: expected a number, got nan")
    margin = filtering.relative_margin
    if margin is not None and not 0 <= margin < 1:
        raise ConfigError(
            f"relative_margin: expected a fraction of the positive's score in [0, 1), got {margin}"
        )


def _split_options(text: str) -> tuple[str, dict[str, str]]:
    # Only known options end the value: file names may contain commas and equals signs.
    head, *parts = re.split(f",(?=(?:{'|'.join(_OPTIONS + _FORMER_OPTIONS)})=)", text)
    options: dict[str, str] = {}
    for part in parts:
        key, _, value = part.partition("=")
        named = {key: value}
        if key == "quota":
            named = {"num_negatives": value}
        elif key == "ranks":
            window = re.fullmatch("([0-9]+)-([0-9]+)", value)
            if not window:
                raise ConfigError(
                    f"source '{text}': expected ranks as FIRST-LAST counted from 1, such as "
                    f"10-200, got '{value}'"
                )
            named = {"range_min": window[1], "range_max": window[2]}
        for name, given in named.items():
            if name in options:
                raise ConfigError(f"source '{text}': expected {name} once, got it twice")
            options[name] = given
    return head, options


def _number(options: Mapping[str, str], name: str, default: int, *, text: str) -> int:
    given = options.get(name, str(default))
    if not re.fullmatch("[0-9]{1,9}", given) or int(given) < 1:
        raise ConfigError(f"source '{text}': expected {name} of at least 1, got '{given}'")
    return int(given)
