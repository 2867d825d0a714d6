"""Running a plan: every stage that is not done, in order."""

import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import dptdr
from dptdr.errors import ConfigError
from dptdr.recipes.kinds import TABLE
from dptdr.recipes.planning import Plan, PlannedStage
from dptdr.recipes.store import locked, name_stage
from dptdr.recipes.table import PAGE, make_table, table_cells

Run = Callable[[PlannedStage], None]
"""Runs a stage's command; raises if it fails."""


def run_plan(plan: Plan, *, run: Run, tell: Callable[[str], None]) -> tuple[int, int]:
    """Do all stages that are not done.

    Args:
        plan: The plan.
        run: Runs one command.
        tell: Gets a line about each stage.

    Returns:
        Stages that were done now, and stages that were done before.

    Raises:
        ConfigError: If files are missing or another run works in the same folder; then nothing
            was started.
    """
    recipe = plan.recipe
    if plan.missing:
        lines = "".join(f"\n  - {path}" for path in plan.missing)
        raise ConfigError(f"{recipe.path}: files are missing, nothing was started:{lines}")
    done_now = 0
    with locked(recipe.work):
        for number, planned in enumerate(plan.stages, start=1):
            head = f"[{number}/{len(plan.stages)}] {planned.stage.name}"
            if planned.place.done:
                tell(f"{head}: done before")
            else:
                tell(f"{head}: {planned.command_line}")
                _do(planned, plan, run=run)
                done_now += 1
            name_stage(recipe.work, planned.stage.name, planned.place)
    return done_now, len(plan.stages) - done_now


def _do(planned: PlannedStage, plan: Plan, *, run: Run) -> None:
    began, moment = time.monotonic(), datetime.now(tz=UTC)
    planned.place.folder.mkdir(parents=True, exist_ok=True)
    if planned.stage.do == TABLE:
        _table(planned, plan)
    else:
        run(planned)
    planned.place.finish(
        {
            "stage": planned.stage.name,
            "do": planned.stage.do,
            "settings": planned.settings,
            "inputs": planned.inputs,
            "command": planned.command_line,
            "recipe": plan.recipe.name,
            "dptdr_version": dptdr.__version__,
            "started": moment.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - began, 1),
        }
    )


def _table(planned: PlannedStage, plan: Plan) -> None:
    outputs = {other.stage.name: other.place.output for other in plan.stages}
    reports = {
        (system, column): [_report(text, outputs) for text in texts]
        for system, column, texts in table_cells(planned.stage.settings)
    }
    make_table(planned.stage.settings, reports, out=planned.place.output)


def _report(text: str, outputs: dict[str, Path]) -> Path:
    return outputs[text[1:]] if text.startswith("@") else Path(text)


def copy_tables(plan: Plan, folder: Path) -> list[Path]:
    """Copy the pages of all tables that are done.

    Args:
        plan: The plan.
        folder: Where to.

    Returns:
        The pages.
    """
    found = []
    for planned in plan.stages:
        if planned.stage.do == TABLE and planned.place.done:
            folder.mkdir(parents=True, exist_ok=True)
            for name in (PAGE, planned.place.output.name):
                page = folder / f"{planned.stage.name}{Path(name).suffix}"
                shutil.copy(planned.place.folder / name, page)
                if name == PAGE:
                    found.append(page)
    return found
