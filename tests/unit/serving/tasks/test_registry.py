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
from dptdr.serving.engine.forward import Forward, Row
from dptdr.serving.tasks.registry import Bank, TaskExists, UnknownTask
from helpers.serving import task_encoder, write_bundle
from helpers.tiny import tiny_backbone


def vector(bank, version, side="query"):
    ids = bank.forward.tokenize(["the red boat"], side=side)[0]
    return bank.forward.vectors([Row(ids, bank.prompt(version, side))])[0].numpy()


def alone(path, backbone, side="query"):
    encoder = load_task(path, backbone=backbone)
    encode = encoder.encode_queries if side == "query" else encoder.encode_passages
    return encode(["the red boat"])[0]


@pytest.mark.parametrize("sharing", ["tied", "untied", "query-only"])
@pytest.mark.parametrize("attention", ["joint", "added"])
def test_add_a_task_is_served_as_it_is_alone(bank, bundle, sharing, attention):
    path = bundle(sharing=sharing, attention=attention)

    version = bank.add("medical", path)

    assert version.name == "medical@1"
    for side in ("query", "passage"):
        expected = alone(path, bank.backbone, side)
        np.testing.assert_allclose(vector(bank, version, side), expected, atol=2e-5)
    if sharing == "query-only":
        assert bank.prompt(version, "passage") is None
        assert version.fingerprints["passage"] == bank.bare.fingerprints["passage"]


def test_add_copies_the_bundle_so_that_training_in_place_changes_nothing(bank, bundle):
    path = bundle(seed=1)
    version = bank.add("medical", path)
    before = vector(bank, version)

    shutil.rmtree(path)
    bundle(seed=2)
    bank.hot.forget({version.file.key})

    np.testing.assert_array_equal(vector(bank, bank.resolve("medical")), before)


def test_add_a_second_time_needs_replace_and_makes_the_next_version(bank, bundle):
    bank.add("medical", bundle("one", seed=1))

    with pytest.raises(TaskExists, match="task 'medical' is there already"):
        bank.add("medical", bundle("two", seed=2))
    bank.add("medical", bundle("two", seed=2), replace=True)
    bank.add("medical", bundle("three", seed=3), version="trial", default=False, replace=True)

    assert list(bank.tasks()["medical"].versions) == ["1", "2", "trial"]
    assert bank.resolve("medical").version == "2"
    assert bank.resolve("medical@trial").version == "trial"
    with pytest.raises(TaskExists, match="'medical@2' is there already; versions never change"):
        bank.add("medical", bundle("four", seed=4), version="2", replace=True)


def test_rollback_goes_back_default_by_default(bank, bundle):
    for seed in (1, 2, 3):
        bank.add("medical", bundle(f"b{seed}", seed=seed), replace=True)

    assert bank.rollback("medical").version == "2"
    assert bank.rollback("medical").version == "1"
    with pytest.raises(ServingError, match="nothing to go back to"):
        bank.rollback("medical")
    assert bank.set_default("medical", "3").version == "3"
    assert bank.rollback("medical").version == "1"


def test_remove_versions_and_tasks(bank, bundle):
    held = bank.add("medical", bundle("one", seed=1))
    expected = vector(bank, held)
    bank.add("medical", bundle("two", seed=2), replace=True)

    with pytest.raises(ServingError, match="'medical@2' is the default"):
        bank.remove("medical", version="2")
    bank.remove("medical", version="1")

    assert list(bank.tasks()["medical"].versions) == ["2"]
    assert not bank.catalogue.bundle(held.file.key).exists()
    # Who holds the version goes on with it: the mapping outlives the file.
    np.testing.assert_array_equal(vector(bank, held), expected)
    bank.remove("medical")
    with pytest.raises(UnknownTask, match="unknown task 'medical'"):
        bank.resolve("medical")
    with pytest.raises(UnknownTask, match="unknown task 'medical'"):
        bank.remove("medical")


def test_resolve_names(bank, bundle):
    bank.add("medical", bundle())

    assert bank.resolve("backbone") is bank.bare
    assert bank.resolve("medical@1") is bank.resolve("medical")
    for unknown, message in (
        ("medical@9", "task 'medical' has no version '9'; it has 1"),
        ("law", "unknown task 'law'"),
        ("medical@", "no version"),
    ):
        with pytest.raises(UnknownTask, match=message):
            bank.resolve(unknown)


@pytest.mark.parametrize(
    "name", ["", "../x", "a/b", "backbone", ".hidden", "a@b", "a:b", "x" * 101]
)
def test_add_refuses_names_that_cannot_stand_in_an_address(bank, bundle, name):
    with pytest.raises(ServingError, match="task name"):
        bank.add(name, bundle())


def test_add_refuses_a_bundle_of_another_backbone_and_names_both(bank, tmp_path):
    other = tiny_backbone("bert", seed=7)
    path = write_bundle(tmp_path / "foreign", other)

    with pytest.raises(WrongBackbone) as caught:
        bank.add("foreign", path)

    assert other.fingerprint in str(caught.value)
    assert bank.backbone.fingerprint in str(caught.value)
    assert "foreign" not in bank.tasks()


def test_add_refuses_methods_that_change_the_encoder(bank, tmp_path):
    from dptdr.config.methods import ShallowPromptConfig
    from dptdr.model.methods import MethodFactory

    plain = tiny_backbone("bert")
    method = MethodFactory().build("shallow-prompt", plain, ShallowPromptConfig(), seed=0)
    save_task(tmp_path / "shallow", Encoder(plain, method=method))

    with pytest.raises(ServingError, match=r"tuned by 'shallow-prompt'.*--method deep-prompt"):
        bank.add("shallow", tmp_path / "shallow")


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
        (damage_fingerprint, "fingerprints in task.json"),
        (damage_settings, "expected prompts|does not contain"),
    ],
)
def test_add_refuses_a_damaged_bundle_and_nothing_changes(bank, bundle, damage, message):
    bank.add("medical", bundle("good", seed=1))
    bad = bundle("bad", seed=2)
    damage(bad)

    with pytest.raises(BundleError, match=message):
        bank.add("medical", bad, replace=True)

    assert bank.resolve("medical").version == "1"
    assert len(list(bank.catalogue.bundle("x").parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "NaN or infinity"), (0.0, "has no effect on a vector")]
)
def test_add_refuses_rows_without_sense_or_effect(bank, tmp_path, value, message):
    encoder = task_encoder(bank.backbone, attention="added")
    shared = encoder.method.module["shared"]
    with torch.no_grad():
        shared.values.fill_(value)
    save_task(tmp_path / "odd", encoder)

    with pytest.raises(BundleError, match=message):
        bank.add("odd", tmp_path / "odd")


def test_another_worker_sees_changes_at_its_next_request(bank, bundle):
    other = Bank(bank.forward, state=bank.catalogue.folder)
    bank.add("medical", bundle("one", seed=1))

    assert other.resolve("medical").version == "1"
    other.add("medical", bundle("two", seed=2), replace=True)
    assert bank.resolve("medical").version == "2"
    np.testing.assert_array_equal(
        vector(bank, bank.resolve("medical")), vector(other, other.resolve("medical"))
    )
    bank.remove("medical")
    with pytest.raises(UnknownTask):
        other.resolve("medical")


def test_a_damaged_copy_takes_down_its_version_only(bank, bundle):
    bank.add("medical", bundle("one", seed=1))
    lost = bank.add("law", bundle("two", seed=2))
    damage_weights(bank.catalogue.bundle(lost.file.key))

    fresh = Bank(bank.forward, state=bank.catalogue.folder)

    assert fresh.resolve("medical").version == "1"
    with pytest.raises(UnknownTask, match="task 'law' has no version '1'"):
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
    bank = Bank(served, state=tmp_path / "state")
    version = bank.add("medical", bundle)
    before = bank.prompt(version, "query")

    assert resident_kilobytes(version.file.path) < 100
    bank.hot.forget({version.file.key})
    torch.testing.assert_close(bank.prompt(version, "query"), before, rtol=0, atol=0)


def test_hot_prompts_stay_within_the_budget_and_come_back_equal(served, tmp_path):
    paths = [write_bundle(tmp_path / f"b{seed}", served.backbone, seed=seed) for seed in range(6)]
    one = 2 * 3 * 4 * 32 * 4
    bank = Bank(served, state=tmp_path / "state", budget_bytes=2 * one)
    versions = [bank.add(f"t{seed}", path) for seed, path in enumerate(paths)]

    first = [vector(bank, version) for version in versions]
    again = [vector(bank, version) for version in versions]

    assert bank.hot.bytes == 2 * one
    assert len(bank.hot) == 2
    assert bank.hot.misses == 12
    np.testing.assert_array_equal(first, again)
    vector(bank, versions[-1])
    assert bank.hot.hits == 1


def test_limits_of_the_task_cut_its_texts(served, tmp_path):
    limits = Limits(max_query_tokens=5, max_passage_tokens=9)
    path = write_bundle(tmp_path / "b", served.backbone, limits=limits)
    bank = Bank(served, state=tmp_path / "state")

    version = bank.add("short", path)

    assert version.limits == limits


def test_bank_works_on_an_intercepted_backbone(tmp_path):
    backbone = tiny_backbone("mpnet")
    bank = Bank(Forward(backbone), state=tmp_path / "state")
    path = write_bundle(tmp_path / "b", backbone)

    version = bank.add("medical", path)

    np.testing.assert_allclose(vector(bank, version), alone(path, backbone), atol=2e-5)
