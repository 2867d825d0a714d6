import json
import shutil

import pytest

from dptdr.config.methods import DeepPromptConfig, LoraConfig
from dptdr.config.training import TrainingConfig
from dptdr.errors import TrainingError, WrongBackbone
from dptdr.io.beir import BeirFolder
from helpers.tasks import tiny_data
from helpers.tiny import tiny_backbone

CONFIG = TrainingConfig(
    max_steps=6, eval_steps=1 / 3, batch_size=5, dev_passages=20, seed=2, max_query_tokens=10
)
METHODS = {
    "deep-prompt": DeepPromptConfig(prompt_length=3, reparametrisation=4),
    "lora": LoraConfig(rank=2),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    from dptdr.training.preparation import load_data
    from dptdr.training.train import train_task

    folder = tmp_path_factory.mktemp("runs")
    data = load_data(BeirFolder(tiny_data(folder / "data")), CONFIG)
    made = {}
    for name, config in METHODS.items():
        result = train_task(
            data,
            folder / name,
            backbone=tiny_backbone("bert"),
            method_name=name,
            method_config=config,
            config=CONFIG,
        )
        assert result is not None
        made[name] = result
    return data, made


@pytest.mark.parametrize("name", sorted(METHODS))
def test_bundle_written_again_from_the_best_checkpoint_is_the_same(runs, tmp_path, name):
    from dptdr.training.checkpoint_selection import write_bundle

    _, made = runs
    folder = made[name].run_folder
    manifest = write_bundle(folder, tmp_path / name, backbone=tiny_backbone("bert"))
    assert manifest == made[name].manifest
    for file in (folder.parent / name).iterdir():
        assert (tmp_path / name / file.name).read_bytes() == file.read_bytes()


def test_a_bundle_says_how_many_dev_queries_were_used_and_how_many_might_have_been(runs):
    data, made = runs
    training = made["deep-prompt"].manifest.training

    assert training["dev_queries"] == len(data.dev.queries) < CONFIG.dev_queries
    assert training["dev_passages"] == len(data.dev.passages)
    limits = (training["max_dev_queries"], training["max_dev_passages"])
    assert limits == (CONFIG.dev_queries, CONFIG.dev_passages)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_bundle_of_another_checkpoint_makes_that_checkpoints_vectors(runs, tmp_path, name):
    from dptdr.model import load_task
    from dptdr.training.checkpoint_selection import measure_again, write_bundle

    data, made = runs
    backbone = tiny_backbone("bert")
    manifest = write_bundle(made[name].run_folder, tmp_path / "t", backbone=backbone, step=2)
    assert manifest.training["best_step"] == 2
    assert manifest.measures["dev nDCG@10"] == made[name].history[2]["nDCG@10"]
    assert (
        manifest.weights_sha256
        != write_bundle(
            made[name].run_folder, tmp_path / "u", backbone=backbone, step=4
        ).weights_sha256
    )
    encoder = load_task(tmp_path / "t", backbone=backbone)
    assert encoder.query_fingerprint == manifest.query_fingerprint
    assert measure_again(
        made[name].run_folder, data.dev, backbone=backbone, measures=["nDCG@10"]
    ) == {step: pytest.approx(m) for step, m in made[name].history.items()}


def test_selection_by_a_measure_that_was_taken_later(runs):
    from dptdr.training.checkpoint_selection import measure_again, select_again

    data, made = runs
    folder = made["deep-prompt"].run_folder
    with pytest.raises(TrainingError, match="step 2 has no measure 'R@3'; available: R@100, RR@10"):
        select_again(folder, measure="R@3")
    history = measure_again(folder, data.dev, backbone=tiny_backbone("bert"), measures=["R@3"])
    best = max(sorted(history), key=lambda step: history[step]["R@3"])
    assert select_again(folder, measure="R@3") == best
    assert select_again(folder, measure="nDCG@10") == made["deep-prompt"].best_step


def test_a_run_of_another_backbone_is_refused(runs, tmp_path):
    from dptdr.training.checkpoint_selection import write_bundle

    _, made = runs
    other = tiny_backbone("bert", seed=9)
    with pytest.raises(WrongBackbone, match=other.fingerprint):
        write_bundle(made["lora"].run_folder, tmp_path / "t", backbone=other)


def test_an_unknown_step_is_refused_with_those_there_are(runs, tmp_path):
    from dptdr.training.checkpoint_selection import write_bundle

    _, made = runs
    with pytest.raises(TrainingError, match="no checkpoint for step 3; available: 2, 4, 6"):
        write_bundle(
            made["lora"].run_folder, tmp_path / "t", backbone=tiny_backbone("bert"), step=3
        )


def test_a_folder_without_a_run_is_refused(tmp_path):
    from dptdr.training.checkpoint_selection import select_again, write_bundle

    with pytest.raises(TrainingError, match="expected a training run with dev measures"):
        select_again(tmp_path, measure="nDCG@10")
    with pytest.raises(TrainingError, match=r"expected a training run with a run\.json"):
        write_bundle(tmp_path, tmp_path / "t", backbone=tiny_backbone("bert"))


def test_bundle_says_how_it_was_trained(runs):
    _, made = runs
    training = made["deep-prompt"].manifest.training
    assert training["max_steps"] == 6
    assert training["method"] == "deep-prompt"
    assert training["learning_rate"] > 0
    assert training["train_queries"] == 14
    assert len(training["data_fingerprint"]) == 64
    assert set(made["deep-prompt"].manifest.measures) >= {
        "dev nDCG@10",
        "bare backbone dev nDCG@10",
    }
    limits = made["deep-prompt"].manifest.limits
    assert limits == {"max_query_tokens": 64, "max_passage_tokens": 64}


def test_attention_to_the_prompt_is_logged_at_the_start_and_at_the_chosen_step(runs):
    _, made = runs
    result = made["deep-prompt"]
    log = (result.run_folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    health = [r for r in map(json.loads, log) if r["kind"] == "health"]
    assert [r["step"] for r in health] == [0, result.best_step]
    for record in health:
        for side in ("query", "passage"):
            layers = record["attention_mass"][side]
            assert [len(heads) for heads in layers] == [4, 4, 4]
            assert all(0.0 < share < 1.0 for heads in layers for share in heads)
    lora = (made["lora"].run_folder / "log.jsonl").read_text(encoding="utf-8")
    assert '"kind": "health"' not in lora


def test_ranks_are_searched_as_deep_as_the_measure_asks(runs, monkeypatch):
    from dptdr.training import checkpoint_selection as selection

    data, made = runs
    depths = []

    def spied(encoder, *, queries, passages, depth, **_):
        depths.append(depth)
        return {query.id: [] for query in queries}

    monkeypatch.setattr(selection, "retrieve", spied)
    folder = made["lora"].run_folder
    log = (folder / "log.jsonl").read_bytes()
    for names in (["R@3"], ["nDCG@10", "R@250"]):
        selection.measure_again(folder, data.dev, backbone=tiny_backbone("bert"), measures=names)
    (folder / "log.jsonl").write_bytes(log)
    assert sorted(set(depths)) == [100, 250]


def test_selection_leaves_out_steps_whose_checkpoint_was_not_kept(runs, tmp_path):
    from dptdr.training.checkpoint_selection import measure_again, select_again
    from dptdr.training.checkpoints import RunFolder

    data, made = runs
    run = tmp_path / "run"
    shutil.copytree(made["lora"].run_folder, run)
    kept = made["lora"].best_step
    for step in set(made["lora"].history) - {kept}:
        RunFolder(run).drop_checkpoint(step)

    history = measure_again(run, data.dev, backbone=tiny_backbone("bert"), measures=["R@7"])

    assert list(history) == [kept]
    assert select_again(run, measure="R@7") == kept
    RunFolder(run).drop_checkpoint(kept)
    with pytest.raises(TrainingError, match="no checkpoint has been kept"):
        select_again(run, measure="R@7")
