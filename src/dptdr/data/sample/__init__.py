"""Sample tasks built from text in every Python installation, without downloads."""

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from dptdr.data.sample.api import PACKAGES, api_pairs, api_sources
from dptdr.data.sample.assemble import SamplePair, clean_pairs, sample_pairs, split_by_unit
from dptdr.data.sample.code import code_pairs, code_sources
from dptdr.data.sample.python_source import SourceFile
from dptdr.errors import DataError
from dptdr.io.beir import BeirCounts, write_beir
from dptdr.records import Passage, Qrels, Query

MAX_PAIRS = 5000

Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The definition of a sample data set: its source, queries and passages."""

    description: str
    query: str
    passage: str
    licence: str
    sources: Callable[[], list[SourceFile]]
    pairs: Callable[[list[SourceFile]], Iterator[SamplePair]]
    packages: tuple[str, ...] = ()


SAMPLES: dict[str, Sample] = {
    "python-code": Sample(
        description="What a function, method or class is for, to the source that does it.",
        query="first paragraph of the docstring",
        passage="source without docstrings; of a class, its own lines and its methods' heads",
        licence="Python Software Foundation License",
        sources=code_sources,
        pairs=code_pairs,
    ),
    "python-api": Sample(
        description="One sentence on what an API does, to the rest of its documentation.",
        query="summary of the docstring",
        passage="the docstring without its summary and without the name",
        licence="numpy, scipy, torch: BSD; matplotlib: Matplotlib License",
        sources=api_sources,
        pairs=api_pairs,
        packages=tuple(PACKAGES),
    ),
}
"""Samples by name."""


def build_sample(
    name: str, *, out: Path | str, seed: int = 0, on_progress: Progress | None = None
) -> BeirCounts:
    """Build a sample task as a BEIR folder with train, dev and test splits.

    The result is determined by the seed and the versions of Python and packages. Splits do not
    share source files.

    Raises:
        DataError: If the sample is unknown, or its sources are not installed.
    """
    if name not in SAMPLES:
        raise DataError(f"expected one of the samples {', '.join(SAMPLES)}, got '{name}'")
    sample = SAMPLES[name]
    found: list[SamplePair] = []
    files = sample.sources()
    for number, file in enumerate(files, start=1):
        found += sample.pairs([file])
        if on_progress is not None:
            on_progress(number, len(files))
    pairs = sample_pairs(clean_pairs(found), count=MAX_PAIRS, seed=seed)
    splits = split_by_unit(pairs, seed=seed)
    qrels: dict[str, Qrels] = {"train": {}, "dev": {}, "test": {}}
    for number, pair in enumerate(pairs):
        qrels[splits[pair.unit]][f"q{number}"] = {pair.id: 1}
    units = Counter(splits.values())
    return write_beir(
        out,
        passages=(Passage(pair.id, pair.passage) for pair in pairs),
        queries=(Query(f"q{number}", pair.query) for number, pair in enumerate(pairs)),
        qrels=qrels,
        meta={
            "name": name,
            "description": sample.description,
            "query": sample.query,
            "passage": sample.passage,
            "licence": sample.licence,
            "split_by": "source file",
            "source_files": {split: units[split] for split in qrels},
            "found_before_cleaning": len(found),
            "seed": seed,
            "python": platform.python_version(),
            "packages": {
                package: importlib.metadata.version(package) for package in sample.packages
            },
        },
    )
