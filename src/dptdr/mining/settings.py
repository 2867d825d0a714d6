"""Settings of mining: sources, false-negative filtering, and their option syntax."""

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
    """How the source is called in the output; unique."""
    kind: Kind
    value: str = ""
    """Task folder, backbone name, run file, or BM25's language."""
    range_min: int = 1
    """Best rank that is taken, counted from 1."""
    range_max: int = 200
    """Worst rank that is taken."""
    num_negatives: int = 30
    """Maximum number of negatives for a query from this source."""
    sampling: Sampling = "top"
    """``top``: best ranks first; ``uniform``: any of the range; ``score``: by higher scores."""


@dataclass(frozen=True, kw_only=True)
class FilteringSettings:
    """Bounds on a teacher's score; ``None`` is no bound."""

    max_score: float | None = None
    """Drop candidates that score at least this."""
    absolute_margin: float | None = None
    """Drop candidates that score above the positive minus this."""
    relative_margin: float | None = None
    """Drop candidates that score above the positive times 1 minus this, if that is above 0."""
    positive_score: PositiveScore = "mean"
    """Which of several positives counts."""

    @property
    def drops(self) -> bool:
        """Whether any bound is set, so that candidates may be dropped."""
        return any(getattr(self, name) is not None for name in BOUNDS)


@dataclass(frozen=True, kw_only=True)
class MiningSettings:
    """Settings of a mining."""

    sources: tuple[SourceSettings, ...]
    filtering: FilteringSettings = FilteringSettings()
    seed: int = 0
    min_grade: int = 1
    """Minimum grade of a positive."""
    output: OutputFormat = "dptdr"
    block_queries: int = 256
    """Queries between two states on disk: what a kill loses at most."""


def parse_source(text: str, *, range_max: int, num_negatives: int) -> SourceSettings:
    """Read one ``--source``: ``KIND[:VALUE][,OPTION=VALUE ...]``.

    Options are those of :class:`SourceSettings`, by default the two given here; ``ranks=A-B`` and
    ``quota=N`` of version 0.1.0 are understood.

    Raises:
        ConfigError: If anything in it is wrong; says what is expected.
    """
    head, options = _split_options(text)
    kind, _, value = head.partition(":")
    if kind not in get_args(Kind) or (kind != "bm25" and not value):
        raise ConfigError(
            f"source '{text}': expected bm25, bm25:LANGUAGE, backbone:NAME, task:FOLDER or "
            "run:FILE, then options such as ,range_min=10,num_negatives=30,sampling=uniform,name=X"
        )
    first = _number(options, "range_min", 1, text=text)
    last = _number(options, "range_max", max(first, range_max), text=text)
    if first > last:
        raise ConfigError(f"source '{text}': expected range_min up to {last}, got {first}")
    sampling = options.get("sampling", "top")
    if sampling not in get_args(Sampling):
        raise ConfigError(f"source '{text}': expected sampling top, uniform or score")
    # Names go into the output: where a folder lies must not change its bytes.
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
    """Refuse missing sources and duplicate names.

    Raises:
        ConfigError: If it is so.
    """
    if not sources:
        raise ConfigError("expected at least one --source, such as --source bm25")
    names = [source.name for source in sources]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ConfigError(
            f"two sources are called '{doubled[0]}'; tell them apart with ,name=SOMETHING"
        )


def check_filtering(filtering: FilteringSettings) -> None:
    """Refuse invalid bounds.

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
            f"relative_margin: expected a share of the positive's score from 0 to below 1, got "
            f"{margin}"
        )


def _split_options(text: str) -> tuple[str, dict[str, str]]:
    # Only known options end the value: a file's name may hold commas and equal signs.
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
                raise ConfigError(f"source '{text}': {name} is given twice")
            options[name] = given
    return head, options


def _number(options: Mapping[str, str], name: str, default: int, *, text: str) -> int:
    given = options.get(name, str(default))
    if not re.fullmatch("[0-9]{1,9}", given) or int(given) < 1:
        raise ConfigError(f"source '{text}': expected {name} of at least 1, got '{given}'")
    return int(given)
