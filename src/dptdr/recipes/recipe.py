"""What a recipe says, after all of it was read and checked."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from dptdr.recipes.kinds import KINDS, Kind

REFERENCE = re.compile(
    r"^(?P<kind>(?:(?:task|backbone|run):)?)@(?P<stage>[a-z0-9][a-z0-9.-]*)(?P<below>(?:/[^,]+)?)"
)
"""``@stage``, ``@stage/path/inside`` or ``task:@stage`` at the beginning of a text."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the stages run on; nothing here changes what comes out of them.

    Args:
        device: Torch device of every stage that computes with an encoder.
        threads: Threads of a process; 0 leaves each command its own choice.
        processes: Training processes on this machine, one per card, started by torchrun.
    """

    device: str = "cpu"
    threads: int = 0
    processes: int = 1


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What the plan's sizes and hours are computed from.

    Args:
        teraflops: Floating-point operations that one card really does in a second, in 10^12;
            0 leaves the hours out.
        cpu_teraflops: The same of all processor cores together, for exact search.
        bm25_queries_per_second: Queries that BM25 answers in a second, all cores together.
        layers: Layers of the backbone, where its folder is not at hand.
        dim: Numbers per vector, likewise.
        vocabulary: Entries of its vocabulary, likewise.
        query_tokens: Mean length of a query.
        passage_tokens: Mean length of a passage.
        passage_bytes: Mean size of a passage in a data folder.
    """

    teraflops: float = 0.0
    cpu_teraflops: float = 1.0
    bm25_queries_per_second: float = 100.0
    layers: int = 0
    dim: int = 0
    vocabulary: int = 30_522
    query_tokens: int = 10
    passage_tokens: int = 80
    passage_bytes: int = 400


@dataclass(frozen=True, kw_only=True)
class Expected:
    """How much a data stage will hold, for planning before it is there.

    Args:
        passages: Passages.
        queries: Queries of all splits.
        train_queries: Queries with a positive in train.
        test_queries: Queries that are searched for.
    """

    passages: int = 0
    queries: int = 0
    train_queries: int = 0
    test_queries: int = 0


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A setting that names another stage's output.

    Args:
        setting: The setting it stands in.
        stage: The other stage.
        below: A path inside its output, empty for all of it.
        kind: What the text says before it (``task`` in ``task:@dpt``), empty for nothing.
    """

    setting: str
    stage: str
    below: str = ""
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage.

    Args:
        name: Unique in the recipe.
        do: Its kind, one of :data:`dptdr.recipes.kinds.KINDS`.
        settings: The command's settings as the recipe gives them, references not replaced.
        references: Those among them that name other stages.
        expect: Sizes of its data, where the recipe says so.
    """

    name: str
    do: str
    settings: dict[str, Any] = field(default_factory=dict)
    references: tuple[Reference, ...] = ()
    expect: Expected = Expected()

    @property
    def kind(self) -> Kind:
        """What the stage's kind is like."""
        return KINDS[self.do]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole experiment.

    Args:
        name: Its name.
        path: The file.
        about: What it is, in a sentence.
        work: Folder of everything that it makes.
        machine: What it runs on.
        assume: What the plan is computed from.
        stages: All stages, in an order in which they can be run.
    """

    name: str
    path: Path
    work: Path
    about: str = ""
    machine: Machine = Machine()
    assume: Assumptions = Assumptions()
    stages: tuple[Stage, ...] = ()

    def stage(self, name: str) -> Stage:
        """Return the stage of a name."""
        return next(stage for stage in self.stages if stage.name == name)


def plain_settings(kind: type, values: Any, *, where: str, problems: list[str]) -> Any:
    """Return a dataclass of whole numbers, numbers and texts from a TOML table.

    Args:
        kind: The dataclass.
        values: The table.
        where: Its name, for messages.
        problems: Gets what is wrong.

    Returns:
        The dataclass, with its defaults where a value is missing or wrong.
    """
    if not isinstance(values, dict):
        problems.append(f"[{where}]: expected a table, got {values!r}")
        return kind()
    known: dict[str, Any] = get_type_hints(kind)
    good: dict[str, Any] = {}
    for name, value in values.items():
        wanted = known.get(name)
        if wanted is None:
            problems.append(f"[{where}] {name}: unknown setting; there are {', '.join(known)}")
        elif isinstance(value, bool) or not isinstance(
            value, (int, float) if wanted is float else wanted
        ):
            problems.append(f"[{where}] {name}: expected {wanted.__name__}, got {value!r}")
        elif not isinstance(value, str) and value < 0:
            problems.append(f"[{where}] {name}: expected at least 0, got {value}")
        else:
            good[name] = float(value) if wanted is float else value
    return kind(**good)
