"""The kinds of stages: which command each one is, what it takes from others, what it leaves."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Role = Literal[
    "data",
    "backbone",
    "task",
    "vectors",
    "index",
    "run",
    "negatives",
    "report",
    "comparison",
    "import",
    "table",
]
"""What a stage's output is; a reference is refused where another role is needed."""

TABLE = "table"
ROUNDS = "rounds"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of stage.

    Args:
        command: Words of the command line; empty for the table, which is made here.
        role: What the output is.
        output: Name of the output inside the stage's folder.
        output_option: The option that takes the output's path.
        inputs: Setting to the roles that a reference in it may have.
        also: Further files that the stage writes: option to name.
        resume: Whether the command goes on with ``--resume``; the others do so by themselves.
        processes: Whether several processes are started by torchrun.
        sources: Settings whose texts are files or folders where they are no references.
        needs: Roles of which the command needs one, for the message.
    """

    command: tuple[str, ...]
    role: Role
    output: str
    output_option: str = "out"
    inputs: Mapping[str, tuple[Role, ...]] = field(default_factory=dict)
    also: Mapping[str, str] = field(default_factory=dict)
    resume: bool = False
    processes: bool = False
    sources: tuple[str, ...] = ()


_DATA: Mapping[str, tuple[Role, ...]] = {"data": ("data",)}
_ENCODER: Mapping[str, tuple[Role, ...]] = {"task": ("task",), "backbone": ("backbone",)}
_JSON = {"json": "summary.json"}

KINDS: dict[str, Kind] = {
    "convert": Kind(command=("data", "convert"), role="data", output="data", sources=("source",)),
    "sample": Kind(command=("data", "sample"), role="data", output="data"),
    "join": Kind(
        command=("data", "join"),
        role="data",
        output="data",
        inputs={"sources": ("data",)},
        sources=("sources",),
    ),
    "cap": Kind(
        command=("data", "cap"), role="data", output="data", inputs=_DATA, sources=("data",)
    ),
    "pretrain": Kind(
        command=("pretrain",),
        role="backbone",
        output="backbone",
        inputs={**_DATA, "backbone": ("backbone",), "from_task": ("task",)},
        also=_JSON,
        resume=True,
        processes=True,
        sources=("data", "from_task"),
    ),
    "train": Kind(
        command=("train",),
        role="task",
        output="task",
        inputs={
            **_DATA,
            "backbone": ("backbone",),
            "negatives": ("negatives",),
            "from_task": ("task",),
        },
        also=_JSON,
        resume=True,
        processes=True,
        sources=("data", "negatives", "from_task"),
    ),
    "import": Kind(command=("import",), role="import", output="imported", sources=("source",)),
    "encode": Kind(
        command=("encode",),
        role="vectors",
        output="vectors",
        inputs={**_DATA, **_ENCODER},
        also=_JSON,
        sources=("data", "task"),
    ),
    "index": Kind(
        command=("index",),
        role="index",
        output="index",
        inputs={"vectors": ("vectors",)},
        also=_JSON,
        sources=("vectors",),
    ),
    "search": Kind(
        command=("search",),
        role="run",
        output="run.trec",
        output_option="run_out",
        inputs={"index": ("index",), "queries": ("data",), **_ENCODER},
        sources=("index", "queries", "task"),
    ),
    "mine": Kind(
        command=("mine",),
        role="negatives",
        output="negatives.jsonl",
        inputs={**_DATA, "source": ("task", "backbone", "run"), "teacher": ("task", "backbone")},
        also=_JSON,
        sources=("data",),
    ),
    "evaluate": Kind(
        command=("evaluate",),
        role="report",
        output="report.json",
        output_option="json",
        inputs={
            **_DATA,
            **_ENCODER,
            "run": ("run",),
            "qrels": ("data",),
            "passages": ("data",),
            "queries": ("data",),
        },
        sources=("data", "task", "run", "qrels", "passages", "queries"),
    ),
    "compare": Kind(
        command=("compare",),
        role="comparison",
        output="comparison.json",
        output_option="json",
        inputs={"reports": ("report",)},
        sources=("reports",),
    ),
    TABLE: Kind(command=(), role="table", output="table.json"),
}

MACHINE_OPTIONS = ("device", "threads", "workers", "processes")
"""Options that come from ``[machine]``: they change how long a stage takes, not what it gives."""

GIVEN = ("out", "json", "run_out", "resume", "report", "tensorboard", "cache", "html", "png")
"""Options that the runner sets itself, or that would write outside of the stage's folder."""
