import json
import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from dptdr.config.training import TrainingConfig
from dptdr.errors import ConfigError, TrainingError
from dptdr.io.atomic import sha256_file
from dptdr.io.beir import BeirFolder
from dptdr.io.store import PassageStore
from dptdr.model import Backbone
from dptdr.records import TrainingGroup
from dptdr.training.refresh import RefreshedGroups
from dptdr.training.train import load_data, train_task
from helpers.tasks import tiny_data
from helpers.tiny import save_tiny

WORKER = Path(__file__).parents[2] / "helpers" / "train_worker.py"
SETTINGS = {
    "steps": 7,
    "evaluations": 1,
    "batch_size": 4,
    "dev_passages": 20,
    "seed": 1,
    "refresh_every": 3,
    "refresh_depth": 12,
    "refresh_percent": 0.0,
}


class KilledError(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refresh")
    return tiny_data(folder / "data"), save_tiny(folder / "bert")


def train(places, out, *, resume=False, watch=None, method="deep-prompt", settings=None, **changes):
    from dptdr.config.methods import config_from

    data, backbone = places
    config = TrainingConfig(**(SETTINGS | changes))
    default = {"prompt_length": 3, "dropout": 0.1} if method == "deep-prompt" else {}
    name, method_config = config_from(method, settings or default)
    return train_task(
        load_data(BeirFolder(data), config),
        out,
        backbone=Backbone.load(str(backbone)),
        method_name=name,
        method_config=method_config,
        config=config,
        resume=resume,
        watch=watch,
    )


def mined(out, step):
    path = out.with_name(out.name + ".training") / "refresh" / f"step-{step:07d}.jsonl"
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def bundle(out):
    return {file.name: file.read_bytes() for file in sorted(out.iterdir())}


@pytest.fixture(scope="module")
def whole(places, tmp_path_factory):
    """A run with refreshes that nothing has interrupted."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole") / "task"
    train(places, out)
    torch.set_num_threads(before)
    return out


def test_a_refresh_mines_with_the_parameters_of_its_step_and_no_positive_is_mined(whole, places):
    first, second = mined(whole, 3), mined(whole, 6)
    assert [line["query_id"] for line in first] == [line["query_id"] for line in second]
    scores = [
        [
            negative["sources"]["current"]["score"]
            for line in lines
            for negative in line["negatives"]
        ]
        for lines in (first, second)
    ]
    assert scores[0] != scores[1]
    for line in first + second:
        assert line["positives"] == [f"p{line['query_id'].removeprefix('q')}"]
        assert not {negative["id"] for negative in line["negatives"]} & set(line["positives"])
        assert {n["sources"]["current"]["rank"] for n in line["negatives"]} <= set(range(1, 13))


def test_refreshes_stand_in_the_log_and_in_the_bundle(whole):
    folder = whole.with_name("task.training")
    logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    refreshes = [record for record in logged if record["kind"] == "refresh"]
    assert [record["step"] for record in refreshes] == [3, 6]
    stored = json.loads((whole / "task.json").read_text(encoding="utf-8"))["training"]["refreshes"]
    for record, entry in zip(refreshes, stored, strict=True):
        path = folder / "refresh" / f"step-{record['step']:07d}.jsonl"
        assert record["sha256"] == entry["sha256"] == sha256_file(path)
        lines = mined(whole, record["step"])
        assert entry["queries"] == len(lines)
        assert entry["negatives"] == sum(len(line["negatives"]) for line in lines)
    assert sorted(path.name for path in (folder / "refresh").iterdir()) == [
        "step-0000003.jsonl",
        "step-0000006.jsonl",
    ]


def test_training_goes_on_with_the_mined_negatives(whole, places, one_thread, tmp_path):
    train(places, tmp_path / "task", refresh_every=0)
    losses = []
    for out in (whole, tmp_path / "task"):
        log = (out.with_name("task.training") / "log.jsonl").read_text().splitlines()
        losses.append([r["loss"] for r in map(json.loads, log) if r["kind"] == "step"])
    assert losses[0][:3] == losses[1][:3]
    assert losses[0][3] != losses[1][3]


@pytest.mark.parametrize("step", [2, 3, 4, 6])
def test_a_run_killed_around_a_refresh_ends_at_the_same_bytes(
    whole, places, one_thread, tmp_path, monkeypatch, step
):
    monkeypatch.setattr("dptdr.training.loop.SECONDS_BETWEEN_STATES", 0.0)

    def watch(now):
        if now.step == step:
            raise KilledError

    with pytest.raises(KilledError):
        train(places, tmp_path / "task", watch=watch)
    train(places, tmp_path / "task", resume=True)
    assert bundle(tmp_path / "task") == bundle(whole)
    assert mined(tmp_path / "task", 6) == mined(whole, 6)


@pytest.mark.parametrize("place", ["_search", "sha256_file", "write_json", "log"])
def test_a_run_killed_within_a_refresh_ends_at_the_same_bytes(
    whole, places, one_thread, tmp_path, monkeypatch, place
):
    from dptdr.training import refresh
    from dptdr.training.checkpoints import RunFolder

    def killed(*arguments, **named):
        raise KilledError

    def killed_at_refreshes(folder, record):
        if record["kind"] == "refresh":
            raise KilledError

    with monkeypatch.context() as patched:
        if place == "log":
            patched.setattr(RunFolder, "log", killed_at_refreshes)
        else:
            patched.setattr(refresh.Refresher if place == "_search" else refresh, place, killed)
        with pytest.raises(KilledError):
            train(places, tmp_path / "task")
    train(places, tmp_path / "task", resume=True)
    assert bundle(tmp_path / "task") == bundle(whole)


def test_a_resumed_run_whose_refresh_is_gone_is_refused(places, one_thread, tmp_path, monkeypatch):
    monkeypatch.setattr("dptdr.training.loop.SECONDS_BETWEEN_STATES", 0.0)

    def watch(now):
        if now.step == 5:
            raise KilledError

    with pytest.raises(KilledError):
        train(places, tmp_path / "task", watch=watch)
    (tmp_path / "task.training" / "refresh" / "step-0000003.jsonl").unlink()
    with pytest.raises(TrainingError, match="negatives that step 5 goes on with are gone"):
        train(places, tmp_path / "task", resume=True)


def test_a_query_only_run_encodes_the_corpus_once(places, one_thread, tmp_path, monkeypatch):
    from dptdr.model import Encoder

    encoded = []
    encode = Encoder.encode_passages
    monkeypatch.setattr(
        Encoder,
        "encode_passages",
        lambda self, texts, **named: encoded.append(len(texts)) or encode(self, texts, **named),
    )
    settings = {"prompt_length": 3, "sharing": "query-only"}
    train(places, tmp_path / "task", settings=settings)
    assert encoded.count(30) == 1
    assert not list((tmp_path / "task.training" / "refresh").glob("vectors-*"))


def test_candidates_near_the_positive_are_left_out_where_asked(places, one_thread, tmp_path):
    result = train(places, tmp_path / "task", steps=4, refresh_percent=99.0)
    (refresh,) = result.manifest.training["refreshes"]
    assert refresh["dropped"] > 0
    for line in mined(tmp_path / "task", 3):
        for negative in line["negatives"]:
            assert negative["teacher"] <= 0.99 * line["positive_teacher"][0] * (1 + 1e-5)


def test_dropout_of_a_tuned_encoder_stays_off_after_a_refresh(places, one_thread, tmp_path):
    result = train(places, tmp_path / "task", method="lora", settings={"rank": 2}, steps=4)
    again = train(places, tmp_path / "again", method="lora", settings={"rank": 2}, steps=4)
    assert bundle(tmp_path / "task").keys() == bundle(tmp_path / "again").keys()
    assert result.history == again.history


def test_groups_exchange_their_negatives_and_keep_all_else(places, tmp_path):
    store = PassageStore(BeirFolder(places[0]))
    base = [
        TrainingGroup("q0", "one", ("right",), ("old",), ("p0",), ("p9",)),
        TrainingGroup("q1", "two", ("right",), ("old",), ("p1",), ("p9",)),
        TrainingGroup("q2", "three", ("right",), ("old",), ("p2",), ("p9",)),
    ]
    groups = RefreshedGroups(base, passages=store)
    assert [groups[item] for item in range(len(groups))] == base
    path = tmp_path / "mined.jsonl"
    lines = [
        {"query_id": "q1", "positives": ["p1"], "negatives": []},
        {"query_id": "q0", "positives": ["p0"], "negatives": [{"id": "p3"}, {"id": "p4"}]},
    ]
    path.write_bytes(b"\n".join(map(orjson.dumps, lines)) + b"\n")
    groups.exchange(path)
    texts = (store["p3"].content, store["p4"].content)
    assert groups[0] == base[0]._replace(negatives=texts, negative_ids=("p3", "p4"))
    assert groups[1] == base[1]._replace(negatives=(), negative_ids=())
    assert groups[2] == base[2]


def test_settings_that_contradict_a_refresh_are_refused(places, tmp_path):
    with pytest.raises(ConfigError, match="refresh_every: expected 0 with distillation"):
        TrainingConfig(refresh_every=5, distillation="kl").check()
    with pytest.raises(ConfigError, match=r"refresh_percent: expected a share in \[0, 100\]"):
        TrainingConfig(refresh_percent=120.0).check()
    data, backbone = places
    config = TrainingConfig(**SETTINGS)
    groups = [TrainingGroup(f"q{i}", f"river {i}", ("stone",)) for i in range(4)]
    prepared = load_data(BeirFolder(data), config, groups=groups)
    from dptdr.config.methods import config_from

    name, method = config_from("deep-prompt", {"prompt_length": 3})
    with pytest.raises(ConfigError, match="positives are passages of"):
        train_task(
            prepared,
            tmp_path / "task",
            backbone=Backbone.load(str(backbone)),
            method_name=name,
            method_config=method,
            config=config,
        )


@pytest.mark.learning
def test_two_processes_refresh_as_one(places, whole, tmp_path):
    data, backbone = places
    settings = {
        "method": "deep-prompt",
        "method_settings": {"prompt_length": 3, "dropout": 0.1},
        "config": SETTINGS,
        "data": str(data),
        "backbone": str(backbone),
        "out": str(tmp_path),
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [
            *torchrun,
            "--nproc-per-node",
            "2",
            str(WORKER),
            "several",
            str(tmp_path / "settings.json"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    for step in (3, 6):
        one, two = mined(whole, step), mined(tmp_path / "task", step)
        assert [line["query_id"] for line in one] == [line["query_id"] for line in two]
        for here, there in zip(one, two, strict=True):
            same = {n["id"] for n in here["negatives"]} & {n["id"] for n in there["negatives"]}
            assert len(same) >= len(here["negatives"]) - 1
