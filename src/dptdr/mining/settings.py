"""What to mine: sources, cleaning, and how their options are written."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from dptdr.errors import ConfigError

Sampling = Literal["top", "uniform", "score"]
PositiveScore = Literal["min", "mean", "max"]
OutputFormat = Literal["dptdr", "tevatron"]
Kind = Literal["bm25", "backbone", "task", "run"]

_OPTIONS = ("ranks", "quota", "sampling", "name")


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """One source of candidates.

    Attributes:
        name: How the source is called in the output; unique.
        kind: What ranks.
        value: Task folder, backbone name, run file, or BM25's language.
        first_rank: Best rank that is taken, from 1.
        last_rank: Worst rank that is taken.
        quota: Negatives per query from this source, at most.
        sampling: ``top``: best ranks first; ``uniform``: any of the window alike; ``score``:
            higher scores more likely.
    """

    name: str
    kind: Kind
    value: str = ""
    first_rank: int = 1
    last_rank: int = 200
    quota: int = 30
    sampling: Sampling = "top"


@dataclass(frozen=True, kw_only=True)
class CleaningSettings:
    """When a candidate is taken for a false negative, by a teacher's scores.

    Attributes:
        drop_above: Drop candidates that score at least this; None for no such bound.
        margin: Drop candidates that score above the positive minus this; None for no such bound.
        percent: Drop candidates that score above this percentage of the positive's score; None
            for no such bound. Where the positive's score is not above 0, it does not apply.
        positive_score: Which of several positives counts.
    """

    drop_above: float | None = None
    margin: float | None = None
    percent: float | None = None
    positive_score: PositiveScore = "mean"

    @property
    def drops(self) -> bool:
        """Whether any bound is set."""
        return any(bound is not None for bound in (self.drop_above, self.margin, self.percent))


@dataclass(frozen=True, kw_only=True)
class MiningSettings:
    """One mining.

    Attributes:
        sources: Where candidates come from.
        cleaning: Bounds for false negatives; they need a teacher.
        seed: Seed of the sampling.
        min_grade: Least grade of a positive.
        output: Layout of the file that is written.
        block_queries: Queries between two states on disk: what a kill loses at most.
    """

    sources: tuple[SourceSettings, ...]
    cleaning: CleaningSettings = CleaningSettings()
    seed: int = 0
    min_grade: int = 1
    output: OutputFormat = "dptdr"
    block_queries: int = 256


def parse_source(text: str, *, depth: int, quota: int) -> SourceSettings:
    """Read one ``--source``: ``KIND[:VALUE][,ranks=A-B][,quota=N][,sampling=S][,name=X]``.

    Raises:
        ConfigError: If anything in it is wrong; says what is expected.
    """
    head, options = _split_options(text)
    kind, _, value = head.partition(":")
    if kind not in get_args(Kind) or (kind != "bm25" and not value):
        raise ConfigError(
            f"source '{text}': expected bm25, bm25:LANGUAGE, backbone:NAME, task:FOLDER or "
            "run:FILE, then options such as ,ranks=10-200,quota=30,sampling=uniform,name=X"
        )
    first, last = _ranks(options, text=text, depth=depth)
    sampling = options.get("sampling", "top")
    if sampling not in get_args(Sampling):
        raise ConfigError(f"source '{text}': expected sampling top, uniform or score")
    count = options.get("quota", str(quota))
    if not re.fullmatch("[0-9]+", count) or int(count) < 1:
        raise ConfigError(f"source '{text}': expected a quota of at least 1, found '{count}'")
    # Names go into the output: where a folder lies must not change its bytes.
    short = {"task": Path(value).name, "run": Path(value).stem}.get(kind, value)
    name = options.get("name", f"{kind}:{short}" if short else kind)
    if not name:
        raise ConfigError(f"source '{text}': expected a name, found nothing")
    return SourceSettings(
        name=name,
        kind=cast(Kind, kind),
        value=value,
        first_rank=first,
        last_rank=last,
        quota=int(count),
        sampling=cast(Sampling, sampling),
    )


def check_sources(sources: list[SourceSettings]) -> None:
    """Refuse no source, and names that stand twice.

    Raises:
        ConfigError: If there is none, or two have one name.
    """
    if not sources:
        raise ConfigError("expected at least one --source, such as --source bm25")
    names = [source.name for source in sources]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ConfigError(
            f"two sources are called '{doubled[0]}'; tell them apart with ,name=SOMETHING"
        )


def check_cleaning(cleaning: CleaningSettings) -> None:
    """Refuse bounds that make no sense.

    Raises:
        ConfigError: If a bound is out of range.
    """
    if cleaning.percent is not None and not 0 < cleaning.percent <= 100:
        raise ConfigError(
            f"expected a percentage of the positive's score from 0 to 100, got {cleaning.percent}"
        )
    for name in ("drop_above", "margin", "percent"):
        value = getattr(cleaning, name)
        if value is not None and value != value:
            raise ConfigError(f"expected a number as {name.replace('_', ' ')}, got nan")


def _split_options(text: str) -> tuple[str, dict[str, str]]:
    # Only known options end the value: a file's name may hold commas and equal signs.
    parts = re.split(f",(?=(?:{'|'.join(_OPTIONS)})=)", text)
    options: dict[str, str] = {}
    for part in parts[1:]:
        key, _, value = part.partition("=")
        if key in options:
            raise ConfigError(f"source '{text}': {key} stands twice")
        options[key] = value
    return parts[0], options


def _ranks(options: Mapping[str, str], *, text: str, depth: int) -> tuple[int, int]:
    window = options.get("ranks", f"1-{depth}")
    match = re.fullmatch("([0-9]+)-([0-9]+)", window)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= first <= last:
        raise ConfigError(
            f"source '{text}': expected ranks as FIRST-LAST counted from 1, such as 10-200, "
            f"found '{window}'"
        )
    return first, last
