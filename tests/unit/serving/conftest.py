"""A tiny backbone that belongs to the server, with its forward pass, registry and engine."""

import pytest


@pytest.fixture(scope="session")
def served():
    """The forward pass over a tiny BERT of its own; stateless, so shared by all tests."""
    from dptdr.serving.forward import Forward
    from helpers.tiny import tiny_backbone

    return Forward(tiny_backbone("bert"))


@pytest.fixture
def registry(served, tmp_path):
    from dptdr.serving.tasks.registry import TaskRegistry

    return TaskRegistry(served, state=tmp_path / "state")


@pytest.fixture
def bundle(served, tmp_path):
    """Write bundles: ``bundle("name", seed=1, sharing="untied")``."""
    from helpers.serving import write_bundle

    def write(name="medical", **options):
        return write_bundle(tmp_path / "bundles" / name, served.backbone, **options)

    return write


@pytest.fixture
def engine(registry):
    from dptdr.serving.engine.engine import Engine

    with Engine(registry) as running:
        yield running
