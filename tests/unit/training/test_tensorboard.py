import builtins

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
    from dptdr.training.distributed import World
    from dptdr.training.tensorboard import mirrored

    with mirrored(tmp_path, world=World()) as write:
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


def test_other_processes_and_runs_without_a_folder_write_nothing(tmp_path):
    from dptdr.training.distributed import World
    from dptdr.training.tensorboard import mirrored

    with mirrored(None, world=World()) as write:
        assert write is None
    with mirrored(tmp_path / "tb", world=World(rank=1, size=2)) as write:
        assert write is None
    assert not (tmp_path / "tb").exists()


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    from dptdr.training.distributed import World
    from dptdr.training.tensorboard import mirrored

    original = builtins.__import__

    def refuse(name, *arguments, **options):
        if name == "torch.utils.tensorboard":
            raise ImportError
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with (
        pytest.raises(ConfigError, match=r"need the package tensorboard; install 'dptdr\[watch\]'"),
        mirrored(tmp_path, world=World()),
    ):
        pass
