"""``dptdr run``: a whole experiment from one file."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dptdr.recipes.planning import Plan, PlannedStage


def command(
    recipe: Annotated[Path, typer.Argument(help="Recipe (TOML); recipes/ holds some.")],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change the recipe, as key=value with a dotted key and a TOML value, such as "
            "defaults.train.steps=10; may be repeated.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Do this stage and those that it needs; may be repeated. Default: all."),
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder for everything made. Default: the recipe's own.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the plan with sizes, hours and commands; do nothing."
        ),
    ] = False,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the plan, and what was done, here.")
    ] = None,
) -> None:
    """Run all stages of RECIPE; what is done and unchanged is not done again.

    All problems of the recipe are reported before anything starts. A killed run goes on, inside the
    stage where it was, when the same command is given again.
    """
    from dptdr.cli.commands import options_of
    from dptdr.errors import ConfigError
    from dptdr.io.atomic import write_json
    from dptdr.recipes.planning import make_plan
    from dptdr.recipes.reading import read_recipe
    from dptdr.recipes.report import plan_json, plan_lines
    from dptdr.recipes.running import copy_tables, run_plan

    read = read_recipe(recipe, options_of=options_of, changes=set_ or (), work=work)
    names = [stage.name for stage in read.stages]
    if wrong := [name for name in only or () if name not in names]:
        raise ConfigError(f"--only {', '.join(wrong)}: no such stage; there are {', '.join(names)}")
    plan = make_plan(read, options_of=options_of, only=only or ())
    if dry_run:
        typer.echo("\n".join(plan_lines(plan)))
    else:
        done, before = run_plan(
            plan, run=lambda planned: _run(planned, plan), tell=lambda line: typer.echo(line)
        )
        for page in copy_tables(plan, read.work / "tables"):
            typer.echo(f"table: {page}")
        typer.echo(f"{read.name}: {done} stages done now, {before} done before; all in {read.work}")
    if json_out is not None:
        write_json(json_out, plan_json(plan))


def _run(planned: "PlannedStage", plan: "Plan") -> None:
    """Run a stage's command here, or in several processes where the machine has several cards."""
    from dptdr.cli.commands import run_command
    from dptdr.errors import ConfigError

    processes = plan.recipe.machine.processes
    if planned.stage.kind.processes and processes > 1:
        _run_processes(planned, processes=processes)
        return
    code = run_command(planned.words, planned.arguments)
    if code:
        raise ConfigError(f"stage '{planned.stage.name}' ended with exit code {code}")


def _run_processes(planned: "PlannedStage", *, processes: int) -> None:
    import subprocess

    from dptdr.errors import TrainingError

    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(processes), "-m", "dptdr"),
            *planned.words,
            *planned.arguments,
        ],
        check=False,
    )
    if done.returncode:
        raise TrainingError(
            f"stage '{planned.stage.name}' ended with {done.returncode}; what it printed above "
            "says why, and the same command goes on where it was"
        )
