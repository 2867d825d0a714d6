"""Fixtures for all tests. The package is imported inside them, after its shapes are checked."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import typer.core
from hypothesis import HealthCheck, settings

# The same examples each time, and none judged by the clock: a loaded machine changes nothing.
settings.register_profile(
    "dptdr",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("dptdr")

# typer documents its own class for commands and hands them the base class, which the check of types
# would refuse.
typer.core.TyperCommand.context_class = typer.Context

# Makes `from helpers...` work everywhere below this folder.
sys.path.insert(0, str(Path(__file__).parent))

from helpers.checks import check_shapes_where_named  # noqa: E402

# The hook that --jaxtyping-packages installs; the package is not imported yet.
check_shapes_where_named()


@pytest.fixture(scope="session")
def minilm():
    """The packaged encoder, frozen; tests must not change it (checkpointing, compiling)."""
    from dptdr.model import Backbone

    return Backbone.load("minilm")


@pytest.fixture(scope="session")
def frozen_tiny() -> Callable:
    """A cached tiny backbone by architecture; tests must not change it."""
    from helpers.tiny import tiny_backbone

    made = {}

    def get(architecture: str = "bert"):
        if architecture not in made:
            made[architecture] = tiny_backbone(architecture)
        return made[architecture]

    return get


@pytest.fixture
def tiny_bert(frozen_tiny):
    """A random 3-layer BERT of 32 dimensions; tests must not change it."""
    return frozen_tiny("bert")
