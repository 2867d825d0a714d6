import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dptdr.errors import BundleError, ServingError, WrongBackbone
from dptdr.model import Encoder, Limits
from dptdr.model.bundle import load_task, save_task
from dptdr.serving.forward import BatchRow, Forward
from dptdr.serving.tasks.registry import TaskExists, TaskRegistry, UnknownTask
from helpers.serving import task_encoder, write_bundle
from helpers.tiny import tiny_backbone


def vector(registry, version, side="query"):
    ids = registry.forward.tokenize(["the red boat"], side=side)[0]
    return registry.forward.vectors([BatchRow(ids, registry.prompt(version, side))])[0].numpy()


def alone(path, backbone, side="query"):
    encoder = load_task(path, backbone=backbone)
    encode = encoder.encode_queries if side == "query" else encoder.encode_passages
    return encode(["the red boat"])[0]


@pytest.mark.parametrize("sharing", ["tied", "untied", "query-only"])
def test_add_a_task_is_served_as_it_is_alone(registry, bundle, sharing):
    path = bundle(sharing=sharing)

    version = registry.add("medical", path)

    assert version.name == "medical@1"
    for side in ("query", "passage"):
        expected = alone(path, registry.backbone, side)
        np.testing.assert_allclose(vector(registry, version, side), expected, atol=2e-5)
    if sharing == "query-only":
        assert registry.prompt(version, "passage") is None
        assert version.fingerprints["passage"] == registry.bare.fingerprints["passage"]


def test_add_copies_the_bundle_so_that_training_in_place_changes_nothing(registry, bundle):
    path = bundle(seed=1)
    version = registry.add("medical", path)
    before = vector(registry, version)

    shutil.rmtree(path)
    bundle(seed=2)
    registry.hot.forget({version.file.key})

    np.testing.assert_array_equal(vector(registry, registry.resolve("medical")), before)


def test_add_a_second_time_needs_replace_and_makes_the_next_version(registry, bundle):
    registry.add("medical", bundle("one", seed=1))

    with pytest.raises(TaskExists, match="task 'medical' already exists"):
        registry.add("medical", bundle("two", seed=2))
    registry.add("medical", bundle("two", seed=2), replace=True)
    registry.add("medical", bundle("three", seed=3), version="trial", default=False, replace=True)

    assert list(registry.tasks()["medical"].versions) == ["1", "2", "trial"]
    assert registry.resolve("medical").version == "2"
    assert registry.resolve("medical@trial").version == "trial"
    with pytest.raises(TaskExists, match="'medical@2' already exists; versions are immutable"):
        registry.add("medical", bundle("four", seed=4), version="2", replace=True)


def test_rollback_goes_back_default_by_default(registry, bundle):
    for seed in (1, 2, 3):
        registry.add("medical", bundle(f"b{seed}", seed=seed), replace=True)

    assert registry.rollback("medical").version == "2"
    assert registry.rollback("medical").version == "1"
    with pytest.raises(ServingError, match="has no earlier default"):
        registry.rollback("medical")
    assert registry.set_default("medical", "3").version == "3"
    assert registry.rollback("medical").version == "1"


def test_remove_versions_and_tasks(registry, bundle):
    held = registry.add("medical", bundle("one", seed=1))
    expected = vector(registry, held)
    registry.add("medical", bundle("two", seed=2), replace=True)

    with pytest.raises(ServingError, match="'medical@2' is the default"):
        registry.remove("medical", version="2")
    registry.remove("medical", version="1")

    assert list(registry.tasks()["medical"].versions) == ["2"]
    assert not registry.catalogue.bundle(held.file.key).exists()
    # Who holds the version goes on with it: the mapping outlives the file.
    np.testing.assert_array_equal(vector(registry, held), expected)
    registry.remove("medical")
    with pytest.raises(UnknownTask, match="unknown task 'medical'"):
        registry.resolve("medical")
    with pytest.raises(UnknownTask, match="unknown task 'medical'"):
        registry.remove("medical")


def test_resolve_names(registry, bundle):
    registry.add("medical", bundle())

    assert registry.resolve("backbone") is registry.bare
    assert registry.resolve("medical@1") is registry.resolve("medical")
    for unknown, message in (
        ("medical@9", "task 'medical' has no version '9'; available: 1"),
        ("law", "unknown task 'law'"),
        ("medical@", "no version"),
    ):
        with pytest.raises(UnknownTask, match=message):
            registry.resolve(unknown)


@pytest.mark.parametrize(
    "name", ["", "../x", "a/b", "backbone", ".hidden", "a@b", "a:b", "x" * 101]
)
def test_add_refuses_names_that_cannot_stand_in_an_address(registry, bundle, name):
    with pytest.raises(ServingError, match="task name"):
        registry.add(name, bundle())


def test_add_refuses_a_bundle_of_another_backbone_and_names_both(registry, tmp_path):
    other = tiny_backbone("bert", seed=7)
    path = write_bundle(tmp_path / "foreign", other)

    with pytest.raises(WrongBackbone) as caught:
        registry.add("foreign", path)

    assert other.fingerprint in str(caught.value)
    assert registry.backbone.fingerprint in str(caught.value)
    assert "foreign" not in registry.tasks()


def test_add_refuses_methods_that_change_the_encoder(registry, tmp_path):
    from dptdr.config.methods import ShallowPromptConfig
    from dptdr.model.methods import MethodFactory

    plain = tiny_backbone("bert")
    method = MethodFactory().build("shallow-prompt", plain, ShallowPromptConfig(), seed=0)
    save_task(tmp_path / "shallow", Encoder(plain, method=method))

    with pytest.raises(ServingError, match=r"got 'shallow-prompt'.*--method deep-prompt"):
        registry.add("shallow", tmp_path / "shallow")


def damage_weights(path):
    file = path / "prompt.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 0xFF
    file.write_bytes(bytes(data))


def damage_format(path):
    manifest = json.loads((path / "task.json").read_text())
    (path / "task.json").write_text(json.dumps(manifest | {"format_version": 99}))


def damage_json(path):
    (path / "task.json").write_text("{")


def damage_fingerprint(path):
    manifest = json.loads((path / "task.json").read_text())
    (path / "task.json").write_text(json.dumps(manifest | {"query_fingerprint": "0" * 64}))


def damage_settings(path):
    manifest = json.loads((path / "task.json").read_text())
    manifest["settings"]["sharing"] = "untied"
    (path / "task.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_weights, "SHA-256"),
        (damage_format, "format_version"),
        (damage_json, "expected JSON"),
        (damage_fingerprint, "expected fingerprints"),
        (damage_settings, "expected prompts"),
    ],
)
def test_add_refuses_a_damaged_bundle_and_nothing_changes(registry, bundle, damage, message):
    registry.add("medical", bundle("good", seed=1))
    bad = bundle("bad", seed=2)
    damage(bad)

    with pytest.raises(BundleError, match=message):
        registry.add("medical", bad, replace=True)

    assert registry.resolve("medical").version == "1"
    assert len(list(registry.catalogue.bundle("x").parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), "expected finite numbers"), (0.0, "has no effect on vectors")],
)
def test_add_refuses_rows_without_sense_or_effect(registry, tmp_path, value, message):
    encoder = task_encoder(registry.backbone, prompt_length=0, ffn_length=2)
    shared = encoder.method.module["shared"]
    with torch.no_grad():
        shared.ffn_values.fill_(value)
    save_task(tmp_path / "odd", encoder)

    with pytest.raises(BundleError, match=message):
        registry.add("odd", tmp_path / "odd")


def test_another_worker_sees_changes_at_its_next_request(registry, bundle):
    other = TaskRegistry(registry.forward, state=registry.catalogue.folder)
    registry.add("medical", bundle("one", seed=1))

    assert other.resolve("medical").version == "1"
    other.add("medical", bundle("two", seed=2), replace=True)
    assert registry.resolve("medical").version == "2"
    np.testing.assert_array_equal(
        vector(registry, registry.resolve("medical")), vector(other, other.resolve("medical"))
    )
    registry.remove("medical")
    with pytest.raises(UnknownTask):
        other.resolve("medical")


def test_a_damaged_copy_takes_down_its_version_only(registry, bundle):
    registry.add("medical", bundle("one", seed=1))
    lost = registry.add("law", bundle("two", seed=2))
    damage_weights(registry.catalogue.bundle(lost.file.key))

    fresh = TaskRegistry(registry.forward, state=registry.catalogue.folder)

    assert fresh.resolve("medical").version == "1"
    with pytest.raises(UnknownTask, match="copy of 'law@1' is damaged"):
        fresh.resolve("law")
    assert "SHA-256" in fresh.broken["law@1"]


def resident_kilobytes(path):
    """Return how much of a mapped file is in this process's memory."""
    parts = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    own = [part for part in parts if str(path) in part.split("\n", 1)[0]]
    assert own
    return sum(int(re.search(r"Rss: +(\d+)", part)[1]) for part in own)


@pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux")
def test_pages_of_a_hot_prompt_are_given_back_and_read_again(served, tmp_path):
    bundle = write_bundle(tmp_path / "bundle", served.backbone, prompt_length=4000)
    registry = TaskRegistry(served, state=tmp_path / "state")
    version = registry.add("medical", bundle)
    before = registry.prompt(version, "query")

    assert resident_kilobytes(version.file.path) < 100
    registry.hot.forget({version.file.key})
    torch.testing.assert_close(registry.prompt(version, "query"), before, rtol=0, atol=0)


def test_hot_prompts_stay_within_the_budget_and_come_back_equal(served, tmp_path):
    paths = [write_bundle(tmp_path / f"b{seed}", served.backbone, seed=seed) for seed in range(6)]
    one = 2 * 3 * 4 * 32 * 4
    registry = TaskRegistry(served, state=tmp_path / "state", budget_bytes=2 * one)
    versions = [registry.add(f"t{seed}", path) for seed, path in enumerate(paths)]

    first = [vector(registry, version) for version in versions]
    again = [vector(registry, version) for version in versions]

    assert registry.hot.bytes == 2 * one
    assert len(registry.hot) == 2
    assert registry.hot.misses == 12
    np.testing.assert_array_equal(first, again)
    vector(registry, versions[-1])
    assert registry.hot.hits == 1


def test_limits_of_the_task_cut_its_texts(served, tmp_path):
    limits = Limits(max_query_tokens=5, max_passage_tokens=9)
    path = write_bundle(tmp_path / "b", served.backbone, limits=limits)
    registry = TaskRegistry(served, state=tmp_path / "state")

    version = registry.add("short", path)

    assert version.limits == limits


def test_bank_works_on_an_intercepted_backbone(tmp_path):
    backbone = tiny_backbone("mpnet")
    registry = TaskRegistry(Forward(backbone), state=tmp_path / "state")
    path = write_bundle(tmp_path / "b", backbone)

    version = registry.add("medical", path)

    np.testing.assert_allclose(vector(registry, version), alone(path, backbone), atol=2e-5)


@pytest.mark.parametrize("repair", ["restart", "replace"])
def test_a_damaged_copy_is_made_again_from_its_bundle(served, tmp_path, bundle, repair):
    source = bundle("medical", seed=1)
    state = tmp_path / "state"
    first = TaskRegistry(served, state=state)
    first.add("medical", source)
    (weights,) = (state / "bundles").glob("*/prompt.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.unlink()
    weights.write_bytes(bytes(data))

    again = TaskRegistry(served, state=state)
    assert "SHA-256" in again.broken["medical@1"]
    with pytest.raises(UnknownTask, match="copy of 'medical@1' is damaged; add its bundle again"):
        again.resolve("medical")
    if repair == "restart":
        assert again.add_given("medical", source) == ""
    else:
        again.add("medical", source, version="b", replace=True)

    assert again.resolve("medical@1").prompts == first.resolve("medical@1").prompts
    assert again.broken == {}


def test_a_damaged_catalogue_does_not_take_away_what_is_in_memory(served, tmp_path, bundle):
    registry = TaskRegistry(served, state=tmp_path / "state")
    version = registry.add("medical", bundle("medical"))
    registry.catalogue.file.write_text("{")

    assert registry.resolve("medical") is version
    assert "damaged task catalogue" in registry.unreadable
    with pytest.raises(ServingError, match="damaged task catalogue"):
        TaskRegistry(served, state=tmp_path / "state")


@pytest.mark.parametrize("gone", ["catalogue.json", ""])
def test_a_state_that_is_removed_takes_nothing_away_and_stops_changes(
    served, tmp_path, bundle, gone
):
    registry = TaskRegistry(served, state=tmp_path / "state")
    version = registry.add("medical", bundle("medical"))
    place = tmp_path / "state" / gone
    place.unlink() if gone else shutil.rmtree(place)

    assert registry.resolve("medical") is version
    for change in (
        lambda: registry.add("law", bundle("law", seed=2)),
        lambda: registry.remove("medical"),
    ):
        with pytest.raises(ServingError, match="restart the server"):
            change()
    assert registry.resolve("medical") is version
    assert "restart the server" in registry.unreadable


def test_what_a_killed_server_was_copying_is_removed(registry, bundle):
    left = registry.catalogue.folder / "bundles" / ".abc.123.tmp"
    left.mkdir()

    registry.add("medical", bundle("medical"))

    assert not left.exists()


def test_a_bundle_given_at_the_start_is_the_default_once(registry, bundle):
    first, second = bundle("one"), bundle("two", seed=2)
    assert registry.add_given("t", first) == ""
    assert registry.add_given("t", second) == ""
    assert registry.resolve("t").version == "2"
    assert registry.add_given("t", second) == ""

    kept = "task 't': the state's default version 2 is kept; the bundle given is version 1"
    assert registry.add_given("t", first) == kept
    assert registry.resolve("t").version == "2"
    registry.rollback("t")
    assert registry.add_given("t", second) == kept.translate({49: 50, 50: 49})
    assert registry.resolve("t").version == "1"
    registry.remove("t", version="2")
    kept = "task 't': the state's default version 1 is kept; the bundle given was removed"
    assert registry.add_given("t", second) == kept
    registry.remove("t")
    for path in (first, second):
        assert registry.add_given("t", path).startswith("task 't' was removed; add it with POST")
    assert registry.tasks() == {}

    # A bundle that was trained again is another one.
    assert registry.add_given("t", bundle("one", seed=3)) == ""
    assert registry.resolve("t").version == "3"


def test_the_name_of_a_removed_version_is_not_given_to_another_bundle(registry, bundle):
    first, second = bundle("one"), bundle("two", seed=2)
    registry.add("t", first)
    registry.add("t", second, version="v", replace=True, default=False)
    registry.add("t", second, replace=True, default=False)
    for version in ("v", "2"):
        registry.remove("t", version=version)
        with pytest.raises(TaskExists, match=f"'t@{version}' was another bundle before it was re"):
            registry.add("t", first, version=version, replace=True)
    registry.remove("t")
    for version, path in (("v", first), ("1", second), ("2", first)):
        with pytest.raises(TaskExists, match="was another bundle"):
            registry.add("t", path, version=version)
    with pytest.raises(UnknownTask, match="unknown task 't'"):
        registry.set_default("t", "1")
    assert registry.add("t", first).version == "3"
    # The same bundle makes the same vectors.
    assert registry.add("t", second, version="v", replace=True).version == "v"


def test_what_is_remembered_of_removed_versions_and_tasks_is_bounded(registry, bundle, monkeypatch):
    monkeypatch.setattr("dptdr.serving.tasks.catalogue._MAX_REMOVED_VERSIONS", 2)
    monkeypatch.setattr("dptdr.serving.tasks.catalogue._MAX_REMOVED_TASKS", 2)
    path = bundle("one")
    for name in ("a", "b", "c"):
        registry.add(name, path)
        for version in ("u", "v", "w"):
            registry.add(name, path, version=version, replace=True, default=False)
            registry.remove(name, version=version)
        assert list(registry.catalogue.read()[name].removed) == ["v", "w"]
        registry.remove(name)
    remembered = registry.catalogue.read()
    assert {name: list(record.removed) for name, record in remembered.items()} == {
        "b": ["w", "1"],
        "c": ["w", "1"],
    }


def test_a_rollback_that_would_change_nothing_is_refused(registry, bundle):
    registry.add("t", bundle("one"))
    registry.add("t", bundle("two", seed=2), replace=True)
    registry.set_default("t", "1")
    registry.remove("t", version="2")

    assert registry.tasks()["t"].record.history == ()
    with pytest.raises(ServingError, match="has no earlier default than '1' to roll back to"):
        registry.rollback("t")


def test_the_history_of_an_older_catalogue_is_read_without_repeats(registry, bundle):
    registry.add("t", bundle("one"))
    values = json.loads(registry.catalogue.file.read_text())
    values["tasks"]["t"]["history"] = ["1", "1"]
    del values["removed"], values["tasks"]["t"]["removed"]
    registry.catalogue.file.write_text(json.dumps(values))

    with pytest.raises(ServingError, match="has no earlier default"):
        registry.rollback("t")
