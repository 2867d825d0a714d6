import json
import math

import pytest
import torch
from torch import nn

from dptdr.config.training import TrainingConfig
from dptdr.errors import TrainingError
from helpers.training import METHODS, made_method


class Parabola:
    """An objective for the loop alone: half the squared distance to a target that moves."""

    def __init__(self, parameter, *, bad_step=None, bad_gradient_step=None):
        self.parameter = parameter
        self.bad_step = bad_step
        self.bad_gradient_step = bad_gradient_step
        self.steps = []

    def backward(self, step):
        from dptdr.training.objective import StepStats

        self.steps.append(step)
        target = torch.tensor([math.sin(step), math.cos(step), 1.0])
        difference = self.parameter.detach() - target
        loss = float((difference**2).sum() / 2)
        if step == self.bad_step:
            loss = math.nan
        else:
            self.parameter.grad = difference
        if step == self.bad_gradient_step:
            self.parameter.grad = difference * math.inf
        ids = tuple(f"q{step}-{number}" for number in range(10))
        return StepStats(loss=loss, texts=10, tokens=50, query_ids=ids)


def run(folder, *, stop=None, progress=None, keep=None, mirror=None, clock=None, **settings):
    from dptdr.training.checkpoints import RunFolder
    from dptdr.training.distributed import ProcessGroup
    from dptdr.training.loop import TrainState, train_loop

    bad = {name: settings.pop(name, None) for name in ("bad_step", "bad_gradient_step")}
    config = TrainingConfig(**{"max_steps": 12, "eval_steps": 0.25} | settings)
    parameter = nn.Parameter(torch.zeros(3))
    objective = Parabola(parameter, **bad)
    trainable = TrainState({"keys": parameter}, config, rate=0.1)

    def evaluate():
        if stop is not None and len(objective.steps) >= stop:
            raise KeyboardInterrupt
        return {"nDCG@10": float(parameter.detach().sum()), "R@100": -float(parameter[0].detach())}

    history = train_loop(
        objective,
        trainable,
        state=lambda: {"keys": parameter.detach().clone()},
        evaluate=evaluate,
        folder=RunFolder(folder, mirror=mirror),
        world=ProcessGroup(),
        keep=keep,
        progress=progress,
        clock=clock or (lambda: float(len(objective.steps))),
    )
    return history, parameter.detach().clone(), objective.steps


def test_a_run_that_was_stopped_and_resumed_ends_at_the_same_bytes(tmp_path):
    history, whole, _ = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop=9)
    resumed_history, resumed, steps = run(tmp_path / "cut")
    assert steps[0] == 6  # The state of the second evaluation.
    assert torch.equal(resumed, whole)
    assert resumed_history == history
    names = [f"checkpoints/step-00000{step:02d}.safetensors" for step in (3, 6, 9, 12)]
    for name in [*names, "last/state.safetensors", "last/state.json"]:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


class GivenClock:
    """A clock that goes on by what each reading, and each step, is said to take."""

    def __init__(self, *, per_reading=0.0):
        self.now = 0.0
        self.per_reading = per_reading

    def __call__(self):
        self.now += self.per_reading
        return self.now


def saved_steps(folder, *, seconds_per_step, per_reading=0.0):
    """The steps after which the state of a run of 12 steps with one evaluation was saved."""
    clock = GivenClock(per_reading=per_reading)
    seen = {}

    def watch(progress):
        state = folder / "last" / "state.json"
        if state.exists():
            seen.setdefault(json.loads(state.read_text(encoding="utf-8"))["step"])
        clock.now += seconds_per_step

    run(folder, progress=watch, eval_steps=12.0, clock=clock)
    return list(seen)


def test_the_state_is_saved_each_minute_between_evaluations_too(tmp_path):
    assert saved_steps(tmp_path / "slow", seconds_per_step=61.0) == list(range(2, 13))
    assert saved_steps(tmp_path / "medium", seconds_per_step=20.0) == [4, 7, 10, 12]
    assert saved_steps(tmp_path / "quick", seconds_per_step=1.0) == [12]


def test_saving_the_state_takes_a_twentieth_of_the_time_at_most(tmp_path):
    # Saving takes the 10 seconds of a reading, so 200 must go by; a step takes 101.
    saved = saved_steps(tmp_path / "run", seconds_per_step=61.0, per_reading=10.0)
    assert saved == [2, 4, 6, 8, 10, 12]


def test_steps_that_were_repeated_count_once_in_the_log(tmp_path):
    from dptdr.training.checkpoints import RunFolder

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", stop=9)
    with (tmp_path / "run" / "log.jsonl").open("a") as log:
        log.write('{"kind": "step", "st')  # A line that a kill cut short.
    run(tmp_path / "run")
    records = RunFolder(tmp_path / "run").records()
    assert [r["step"] for r in records if r["kind"] == "step"] == list(range(1, 13))
    assert [r["step"] for r in records if r["kind"] == "dev"] == [3, 6, 9, 12]
    lines = (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) > len(records)


def test_watcher_and_mirror_are_told_of_every_step(tmp_path):
    seen, mirrored = [], []
    run(tmp_path / "run", progress=seen.append, mirror=mirrored.append)
    assert [progress.step for progress in seen] == list(range(1, 13))
    assert seen[0].dev is None
    assert seen[-1].dev is not None
    assert seen[-1].seconds_left == 0.0
    assert seen[-1].texts_per_second > 0.0
    assert [r["step"] for r in mirrored if r["kind"] == "step"] == list(range(1, 13))


@pytest.mark.parametrize("kind", ["bad_step", "bad_gradient_step"])
def test_loss_or_gradient_that_is_no_number_stops_and_keeps_the_last_checkpoint(tmp_path, kind):
    what = "loss, got nan" if kind == "bad_step" else "gradient norm, got (inf|nan)"
    kept = "the last checkpoint is .*step-0000006.safetensors"
    with pytest.raises(
        TrainingError, match=f"step 8: expected a finite {what}.*q7-0, q7-1.*{kept}.*lower the"
    ):
        run(tmp_path / "run", **{kind: 7})
    from dptdr.training.checkpoints import RunFolder

    folder = RunFolder(tmp_path / "run")
    assert folder.checkpoint_steps() == [3, 6]
    assert torch.isfinite(folder.load_checkpoint(6)["keys"]).all()
    failure = json.loads((tmp_path / "run" / "failed.json").read_text(encoding="utf-8"))
    assert failure["step"] == 8
    assert failure["query_ids"] == [f"q7-{number}" for number in range(10)]
    _, _, steps = run(tmp_path / "run")
    assert steps == list(range(6, 12))
    assert not (tmp_path / "run" / "failed.json").exists()


@pytest.mark.parametrize("name", ["best_step", "selected_step"])
def test_only_one_checkpoint_is_kept_where_they_are_large(tmp_path, name):
    from dptdr.training import loop
    from dptdr.training.checkpoints import RunFolder

    select = getattr(loop, name)
    history, *_ = run(tmp_path / "run", keep=select)
    assert RunFolder(tmp_path / "run").checkpoint_steps() == [select(history, measure="nDCG@10")]


@pytest.mark.parametrize(
    ("scores", "selected"),
    [
        ([0.80, 0.79, 0.70], 1),
        ([0.80, 0.797, 0.796], 3),
        ([0.80, 0.796, 0.794], 2),
        ([0.70, 0.80, 0.80], 3),
        ([0.796, 0.80, 0.7949], 2),
    ],
)
def test_of_steps_whose_dev_measures_hardly_differ_the_latest_is_selected(scores, selected):
    from dptdr.training.loop import selected_step

    history = {step: {"RR@10": score} for step, score in enumerate(scores, start=1)}
    assert selected_step(history, measure="RR@10") == selected
    # What was selected earlier is selected still, or something later: nothing else is needed.
    earlier = [
        selected_step({s: history[s] for s in range(1, last + 1)}, measure="RR@10")
        for last in range(1, len(scores) + 1)
    ]
    assert earlier == sorted(earlier)


def test_best_step_takes_the_earliest_of_equals_and_names_missing_measures():
    from dptdr.training.loop import best_step

    history = {30: {"RR@10": 0.5}, 10: {"RR@10": 0.5}, 20: {"RR@10": 0.4}}
    assert best_step(history, measure="RR@10") == 10
    with pytest.raises(TrainingError, match="has no measure 'AP'; available: RR@10"):
        best_step(history, measure="AP")


def test_warmup_of_zero_starts_at_the_peak():
    from dptdr.training.loop import rate_factor

    config = TrainingConfig(max_steps=4, warmup_ratio=0.0)
    assert [rate_factor(step, config=config) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    config = TrainingConfig(max_steps=4, warmup_ratio=0.5)
    assert [rate_factor(step, config=config) for step in range(4)] == [0.5, 1.0, 1.0, 0.5]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_gradient_norms_are_told_per_layer(name):
    from dptdr.training.loop import layer_norms
    from helpers.training import gradients, made_groups

    method = made_method(name)
    _, whole = gradients(method, made_groups(4))
    norms = layer_norms(method.trained())
    if name == "shallow-prompt":
        assert norms == []
        return
    assert len(norms) == 3
    assert all(norm > 0.0 for norm in norms)
    squares = sum(norm**2 for norm in norms)
    if name in ("deep-prompt", "lora"):
        assert squares == pytest.approx(float(whole.square().sum()), rel=1e-4)
    else:
        assert squares < float(whole.square().sum())
