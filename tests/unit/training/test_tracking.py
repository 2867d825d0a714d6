"""A run's log in trackers; real TensorBoard files, stand-ins with the others' functions."""

import importlib
import sys
import types
from pathlib import Path

import pytest

from dptdr.errors import ConfigError

RECORDS = [
    {"kind": "step", "step": 1, "loss": 2.5, "layer_gradient_norms": [0.25, 0.5]},
    {"kind": "step", "step": 2, "loss": 1.5, "layer_gradient_norms": [0.125, 0.5]},
    {"kind": "dev", "step": 2, "nDCG@10": 0.75},
    {"kind": "health", "step": 2, "attention_mass": {"query": [[0.25, 0.75], [0.0, 0.5]]}},
]


def test_log_lines_become_tensorboard_scalars(tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="the extra 'watch' is not installed",
    )
    from dptdr.training.distributed import ProcessGroup
    from dptdr.training.tracking import Tracking, tracker_writer

    with tracker_writer(Tracking(tensorboard=tmp_path), world=ProcessGroup()) as write:
        for record in RECORDS:
            write(record)
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()

    def values(tag):
        return [(event.step, event.value) for event in events.Scalars(tag)]

    assert values("step/loss") == [(1, 2.5), (2, 1.5)]
    assert values("dev/nDCG@10") == [(2, 0.75)]
    assert values("gradient norm/layer 0") == [(1, 0.25), (2, 0.125)]
    assert values("attention to the prompt, query/layer 1") == [(2, 0.25)]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_wandb_and_trackio_get_settings_values_and_the_end(monkeypatch, name):
    from dptdr.training.distributed import ProcessGroup
    from dptdr.training.tracking import Tracking, tracker_writer

    calls = []
    fake = types.ModuleType(name)
    fake.init = lambda *, project, name, config: calls.append((project, name, config))
    fake.log = lambda values, *, step: calls.append((step, values))
    fake.finish = lambda: calls.append("finished")
    monkeypatch.setitem(sys.modules, name, fake)

    settings = {"batch_size": 4}
    with tracker_writer(
        Tracking(tracker=name), world=ProcessGroup(), name="faq", settings=settings
    ) as write:
        write(RECORDS[0])
        write(RECORDS[2])

    assert calls == [
        ("dptdr", "faq", settings),
        (1, {"step/loss": 2.5, "gradient norm/layer 0": 0.25, "gradient norm/layer 1": 0.5}),
        (2, {"dev/nDCG@10": 0.75}),
        "finished",
    ]


def test_mlflow_gets_names_that_it_takes(monkeypatch):
    from dptdr.training.distributed import ProcessGroup
    from dptdr.training.tracking import Tracking, tracker_writer

    calls = []

    class Run:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            calls.append("finished")

    fake = types.ModuleType("mlflow")
    fake.start_run = lambda *, run_name: calls.append(run_name) or Run()
    fake.log_params = calls.append
    fake.log_metrics = lambda values, *, step: calls.append((step, values))
    monkeypatch.setitem(sys.modules, "mlflow", fake)

    with tracker_writer(
        Tracking(tracker="mlflow"), world=ProcessGroup(), name="faq", settings={"a": 1}
    ) as write:
        write(RECORDS[2])
        write(RECORDS[3])

    mass = {"attention to the prompt_ query/layer 0": 0.5}
    mass["attention to the prompt_ query/layer 1"] = 0.25
    assert calls == ["faq", {"a": 1}, (2, {"dev/nDCG_10": 0.75}), (2, mass), "finished"]


def test_mlflow_itself_takes_the_values(monkeypatch, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: only a stand-in is")
    from dptdr.training.distributed import ProcessGroup
    from dptdr.training.tracking import Tracking, tracker_writer

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'runs'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    with tracker_writer(
        Tracking(tracker="mlflow"), world=ProcessGroup(), name="faq", settings={"a": 1}
    ) as write:
        for record in RECORDS:
            write(record)
    (run,) = mlflow.search_runs(output_format="list")

    assert run.data.metrics["dev/nDCG_10"] == 0.75
    assert run.data.params == {"a": "1"}


def test_other_processes_and_runs_without_a_tracker_write_nothing(tmp_path):
    from dptdr.training.distributed import ProcessGroup
    from dptdr.training.tracking import Tracking, tracker_writer

    with tracker_writer(Tracking(), world=ProcessGroup()) as write:
        assert write is None
    both = Tracking(tensorboard=tmp_path / "tb", tracker="wandb")
    with tracker_writer(both, world=ProcessGroup(rank=1, size=2)) as write:
        assert write is None
    assert not (tmp_path / "tb").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensorboard": Path("tb")}, r"needs the package tensorboard; install 'dptdr\[watch\]'"),
        ({"tracker": "trackio"}, "needs the package trackio: pip install trackio"),
        ({"tracker": "neptune"}, "expected one of wandb, trackio, mlflow, got 'neptune'"),
    ],
)
def test_a_missing_or_unknown_tracker_is_named(monkeypatch, options, message):
    from dptdr.training.distributed import ProcessGroup
    from dptdr.training.tracking import Tracking, tracker_writer

    def refuse(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with (
        pytest.raises(ConfigError, match=message),
        tracker_writer(Tracking(**options), world=ProcessGroup()),
    ):
        pass
