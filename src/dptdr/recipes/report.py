"""The plan as text and as JSON."""

from typing import Any

from dptdr.recipes.planning import Plan, PlannedStage


def plan_lines(plan: Plan) -> list[str]:
    """Return a plan for people: a table of stages, then every command.

    Args:
        plan: The plan.

    Returns:
        The lines.
    """
    recipe = plan.recipe
    head: tuple[str, ...] = ("stage", "does", "state", "disk", "memory", "hours", "what")
    rows = [head]
    rows += [_row(planned) for planned in plan.stages]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [f"{recipe.name}: {recipe.about}" if recipe.about else recipe.name]
    lines += [f"work folder {recipe.work}; {_machine(plan)}", ""]
    lines += [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    disk, hours = totals(plan)
    left = [planned for planned in plan.stages if planned.state != "done"]
    lines += [
        "",
        f"{len(left)} of {len(plan.stages)} stages to do; all together {_bytes(disk)} of disk"
        + (f" and about {hours:,.1f} hours" if hours else ""),
        "",
        "commands",
    ]
    lines += [f"  {planned.stage.name}: {planned.command_line}" for planned in plan.stages]
    if plan.missing:
        lines += ["", "missing, so `dptdr run` would refuse to start:"]
        lines += [f"  {path}" for path in plan.missing]
    return lines


def totals(plan: Plan) -> tuple[int, float]:
    """Return the bytes on disk and the hours of all stages."""
    # Stages with the same key are one piece of work.
    once = {planned.place.key: planned.estimate for planned in plan.stages}.values()
    return sum(item.disk_bytes for item in once), sum(item.hours for item in once)


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return a plan for machines.

    Args:
        plan: The plan.

    Returns:
        Name, work folder, and for every stage its key, state, command and estimate.
    """
    disk, hours = totals(plan)
    return {
        "recipe": plan.recipe.name,
        "work": str(plan.recipe.work),
        "missing": plan.missing,
        "disk_bytes": disk,
        "hours": hours,
        "stages": [
            {
                "name": planned.stage.name,
                "do": planned.stage.do,
                "key": planned.place.key,
                "folder": str(planned.place.folder),
                "output": str(planned.place.output),
                "state": planned.state,
                "command": planned.command_line,
                "disk_bytes": planned.estimate.disk_bytes,
                "memory_bytes": planned.estimate.memory_bytes,
                "hours": planned.estimate.hours,
                "what": planned.estimate.what,
            }
            for planned in plan.stages
        ],
    }


def _row(planned: PlannedStage) -> tuple[str, ...]:
    found = planned.estimate
    return (
        planned.stage.name,
        planned.stage.do,
        planned.state,
        _bytes(found.disk_bytes),
        _bytes(found.memory_bytes),
        f"{found.hours:,.2f}" if found.hours else "",
        found.what,
    )


def _machine(plan: Plan) -> str:
    machine, assume = plan.recipe.machine, plan.recipe.assume
    text = f"device {machine.device}, {machine.processes} training processes"
    if assume.teraflops:
        text += (
            f"; hours assume {assume.teraflops:g} TFLOP/s a card, {assume.cpu_teraflops:g} TFLOP/s "
            "on the processor"
        )
    return text


def _bytes(count: int) -> str:
    if not count:
        return ""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} B"


def cost_lines(many: Plan, one: Plan) -> list[str]:
    """Return what stands in a shipped recipe's comment on its costs.

    Args:
        many: The plan on a machine with several cards.
        one: The same plan on one card.

    Returns:
        A line for each stage that costs anything, and one for all.
    """
    cards = many.recipe.machine.processes
    rows = [("stage", f"{cards} cards", "one card", "disk", "memory of a card")]
    for left, right in zip(many.stages, one.stages, strict=True):
        costs = left.estimate
        if costs.hours or costs.disk_bytes:
            rows.append(
                (
                    left.stage.name,
                    _hours(costs.hours),
                    _hours(right.estimate.hours),
                    _bytes(costs.disk_bytes),
                    _bytes(costs.memory_bytes),
                )
            )
    (disk, several), (_, single) = totals(many), totals(one)
    rows.append(("all", _hours(several), _hours(single), _bytes(disk), ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _hours(hours: float) -> str:
    if not hours:
        return ""
    return f"{hours:,.1f} h" if hours >= 0.1 else f"{hours:.2f} h"
