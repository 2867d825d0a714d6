"""A real training on the packaged encoder, small enough for two cores."""

import pytest

from dptdr.config.methods import DeepPromptConfig
from dptdr.config.training import TrainingConfig
from dptdr.data.sample import build_sample
from dptdr.io.beir import BeirFolder

pytestmark = pytest.mark.learning

CONFIG = TrainingConfig(
    max_steps=60,
    max_passage_tokens=64,
    eval_steps=0.5,
    dev_queries=150,
    dev_passages=600,
    precision="bfloat16",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from dptdr.model import Backbone
    from dptdr.model.fingerprints import hash_tensors
    from dptdr.training.preparation import load_data
    from dptdr.training.train import train_task

    folder = tmp_path_factory.mktemp("learning")
    build_sample("python-code", out=folder / "data", seed=0)
    backbone = Backbone.load("minilm")
    before = hash_tensors(backbone.model.state_dict())
    losses = []
    result = train_task(
        load_data(BeirFolder(folder / "data"), CONFIG),
        folder / "task",
        backbone=backbone,
        method_name="deep-prompt",
        method_config=DeepPromptConfig(),
        config=CONFIG,
        progress=lambda progress: losses.append(progress.loss),
    )
    assert result is not None
    return result, losses, (before, hash_tensors(backbone.model.state_dict()))


def test_a_prompt_ranks_unseen_queries_better_than_the_bare_backbone(trained):
    result, _, _ = trained
    best = result.history[result.best_step]["nDCG@10"]
    assert best > result.bare["nDCG@10"] + 0.02


def test_the_loss_falls(trained):
    _, losses, _ = trained
    assert sum(losses[-15:]) < 0.8 * sum(losses[:15])


def test_frozen_weights_are_byte_identical_after_training(trained):
    _, _, (before, after) = trained
    assert before == after


def test_the_bundle_on_disk_makes_the_vectors_that_were_measured(trained):
    from dptdr.model import load_task
    from dptdr.training.checkpoint_selection import dev_measures
    from dptdr.training.preparation import load_data

    result, _, _ = trained
    out = result.run_folder.parent / "task"
    data = load_data(BeirFolder(result.run_folder.parent / "data"), CONFIG)
    encoder = load_task(out)
    # The bundle reads longer texts than training did: close to, not equal to, what was measured.
    measured = dev_measures(encoder, data.dev, measure="nDCG@10")["nDCG@10"]
    assert measured == pytest.approx(result.history[result.best_step]["nDCG@10"], abs=0.03)
