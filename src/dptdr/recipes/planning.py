"""The plan: for every stage its key, its place, its command line, and what it will cost."""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dptdr
from dptdr.recipes.estimates import Estimate, Estimator
from dptdr.recipes.fingerprints import MISSING, FileHashes, backbone_fingerprint, digest
from dptdr.recipes.kinds import MACHINE_OPTIONS, TABLE
from dptdr.recipes.options import Options
from dptdr.recipes.recipe import REFERENCE, Recipe, Stage
from dptdr.recipes.store import Place, place_of

_KEY_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """A stage with everything known about it before it runs.

    Args:
        stage: The stage.
        place: Where its output stands or will stand.
        settings: Its settings, references replaced by paths.
        inputs: What it is made from: setting or path to fingerprint.
        arguments: Words of its command line after the command's own.
        words: The command's own words; empty for the table.
        missing: Files it needs that are not there.
        estimate: Sizes and hours.
    """

    stage: Stage
    place: Place
    settings: dict[str, Any]
    inputs: dict[str, str]
    arguments: tuple[str, ...]
    words: tuple[str, ...]
    missing: tuple[str, ...]
    estimate: Estimate

    @property
    def command_line(self) -> str:
        """What a person would type."""
        if not self.words:
            return "(made by dptdr run)"
        return shlex.join(["dptdr", *self.words, *self.arguments])

    @property
    def state(self) -> str:
        """``done``, ``started`` or ``to do``."""
        if self.place.done:
            return "done"
        return "started" if self.place.started else "to do"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All stages of a recipe in order."""

    recipe: Recipe
    stages: tuple[PlannedStage, ...]

    @property
    def missing(self) -> list[str]:
        """Files that stages still to be done need and that are not there."""
        found = [
            path for planned in self.stages if planned.state != "done" for path in planned.missing
        ]
        return list(dict.fromkeys(found))


def make_plan(
    recipe: Recipe,
    *,
    options_of: Callable[[tuple[str, ...]], Options],
    only: Sequence[str] = (),
) -> Plan:
    """Plan a recipe; files are fingerprinted, nothing is loaded or started.

    Args:
        recipe: The recipe.
        options_of: Gives the options of a command.
        only: Stages to plan, with those that they need; all if empty.

    Returns:
        The plan.
    """
    hashes = FileHashes(recipe.work / "hashes.json")
    planner = _Planner(recipe, hashes, options_of)
    wanted = _needed(recipe, only)
    stages = tuple(planner.plan(stage) for stage in recipe.stages if stage.name in wanted)
    if recipe.work.is_dir():
        hashes.save()
    return Plan(recipe=recipe, stages=stages)


def _needed(recipe: Recipe, only: Sequence[str]) -> set[str]:
    if not only:
        return {stage.name for stage in recipe.stages}
    wanted = set(only)
    # Stages stand after those that they need.
    for stage in reversed(recipe.stages):
        if stage.name in wanted:
            wanted.update(reference.stage for reference in stage.references)
    return wanted


class _Planner:
    """Plans stages in order, each knowing the places of those before it."""

    def __init__(
        self,
        recipe: Recipe,
        hashes: FileHashes,
        options_of: Callable[[tuple[str, ...]], Options],
    ) -> None:
        self.recipe = recipe
        self.hashes = hashes
        self.options_of = options_of
        self.places: dict[str, Place] = {}
        self.estimator = Estimator(recipe)

    def plan(self, stage: Stage) -> PlannedStage:
        inputs = self._inputs(stage)
        key = digest(
            {
                "format": _KEY_FORMAT,
                "version": dptdr.__version__,
                "do": stage.do,
                "settings": self._without_paths(stage),
                # What is read counts, not where it lies or how a stage is called.
                "inputs": sorted(inputs.values()),
            }
        )
        place = place_of(self.recipe.work, do=stage.do, key=key, output=self._output(stage))
        self.places[stage.name] = place
        settings = self._resolved(stage.settings) if stage.do != TABLE else dict(stage.settings)
        return PlannedStage(
            stage=stage,
            place=place,
            settings=settings,
            inputs=inputs,
            arguments=tuple(self._arguments(stage, place, settings)),
            words=stage.kind.command,
            missing=tuple(
                value.removeprefix(MISSING)
                for value in inputs.values()
                if value.startswith(MISSING)
            ),
            estimate=self.estimator.of(stage, done=place if place.done else None),
        )

    def _output(self, stage: Stage) -> str:
        return "task" if stage.settings.get("prompt_only") else stage.kind.output

    def _inputs(self, stage: Stage) -> dict[str, str]:
        """Return what the stage reads: keys of other stages, fingerprints of files and names."""
        found = {
            f"@{ref.stage}/{ref.below}": self.places[ref.stage].key for ref in stage.references
        }
        for name, value in stage.settings.items():
            texts = [
                text
                for text in (value if isinstance(value, list) else [value])
                if isinstance(text, str) and not REFERENCE.match(text)
            ]
            if name == "backbone":
                found |= {text: backbone_fingerprint(text, self.hashes) for text in texts}
            elif name in stage.kind.sources:
                found |= {
                    text: text if text.startswith("ir:") else self.hashes.of(Path(text))
                    for text in texts
                }
            elif stage.do == "mine" and name in ("source", "teacher"):
                found |= self._mined_from(texts)
        if stage.do in ("train", "pretrain") and "backbone" not in stage.settings:
            found["minilm"] = backbone_fingerprint("minilm", self.hashes)
        return found

    def _mined_from(self, texts: Sequence[str]) -> dict[str, str]:
        found = {}
        for text in texts:
            kind, _, rest = text.partition(":")
            value = rest.split(",")[0]
            if kind in ("task", "run", "file"):
                found[value] = self.hashes.of(Path(value))
            elif kind == "backbone":
                found[value] = backbone_fingerprint(value, self.hashes)
        return found

    def _without_paths(self, stage: Stage) -> dict[str, Any]:
        """Return settings as they enter the key: names of stages and files say nothing."""
        keys = self._inputs(stage)

        def plain(name: str, value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(name, item) for key, item in value.items()}
            if isinstance(value, list):
                return [plain(name, item) for item in value]
            if not isinstance(value, str):
                return value
            if value in keys:
                return keys[value]
            return REFERENCE.sub(lambda match: self._key(match, keys), value)

        settings = stage.settings
        if stage.do == TABLE:
            return {key: value for key, value in settings.items() if key != "rows"} | {
                "rows": [row["system"] for row in settings["rows"]]
            }
        return {name: plain(name, value) for name, value in settings.items()}

    def _key(self, match: "re.Match[str]", keys: Mapping[str, str]) -> str:
        below = match["below"].removeprefix("/")
        stage = match["stage"]
        return f"{match['kind']}{keys[f'@{stage}/{below}']}/{below}"

    def _resolved(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._resolved(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._resolved(item) for item in value]
        if isinstance(value, str):
            return REFERENCE.sub(
                lambda match: (
                    f"{match['kind']}{self.places[match['stage']].output}{match['below']}"
                ),
                value,
            )
        return value

    def _arguments(self, stage: Stage, place: Place, settings: dict[str, Any]) -> list[str]:
        if stage.do == TABLE:
            return []
        options = self.options_of(stage.kind.command)
        given = dict(settings)
        given[stage.kind.output_option] = str(place.output)
        given |= {name: str(place.folder / file) for name, file in stage.kind.also.items()}
        if stage.kind.resume:
            given["resume"] = True
        machine = self.recipe.machine
        values = {
            "device": machine.device,
            "threads": machine.threads,
            "workers": machine.threads,
            "processes": 0,
        }
        given |= {
            name: values[name] for name in MACHINE_OPTIONS if name in options and values[name]
        }
        positional = [name for name in options if not options[name].words and name in given]
        named = [name for name in given if name not in positional]
        return [
            word for name in (*positional, *named) for word in options[name].arguments(given[name])
        ]
