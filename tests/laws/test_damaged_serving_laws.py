"""Whatever is damaged in a server's files is one error of ours, or does no harm."""

import contextlib
import json
import resource

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi")

from dptdr.errors import ConfigError, DptdrError, ServingError
from dptdr.io.atomic import sha256_file
from helpers.damage import DAMAGE, JSON_VALUES, damage, exchange
from helpers.serving import write_bundle
from helpers.tiny import tiny_backbone

EXAMPLES = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
KEYS = f"""
[[key]]
name = "search-team"
sha256 = "{"0" * 64}"
scopes = ["use", "administer"]
tasks = ["medical-*", "law"]
bundles = ["x"]
requests_per_second = 5
"""
# Signs and words of TOML, a number longer than Python reads, a hash that is there already.
TOML_PIECES = st.sampled_from(
    [*"[]{}=,.\"'\n\0é1a-", "[[key]]", " nan", "true", "tasks", "1" * 5000, f'"{"0" * 64}"']
)


@contextlib.contextmanager
def memory_bounded(megabytes=400):
    """Demand that the block raises the peak memory by no more than this, type checks included."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < megabytes * 1024


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A registry with a tied and an untied task, and their bundles in its folder."""
    from dptdr.serving.forward import Forward
    from dptdr.serving.tasks.registry import TaskRegistry

    folder = tmp_path_factory.mktemp("damaged")
    forward = Forward(tiny_backbone("bert"))
    registry = TaskRegistry(forward, state=folder / "state")
    write_bundle(folder / "tied", forward.backbone, seed=1, ffn_length=2)
    write_bundle(folder / "untied", forward.backbone, seed=2, sharing="untied")
    registry.add("tied", folder / "tied")
    registry.add("untied", folder / "untied")
    registry.add("untied", folder / "tied", replace=True)
    # What is imported and cached at first use is no allocation of a damaged file.
    opened(registry)
    return registry


def use(registry):
    """Show all tasks, and read all prompts, as a server does."""
    from dptdr.serving.http.admin import describe
    from dptdr.serving.http.responses import json_response

    for name, task in registry.tasks().items():
        json_response(describe(name, task, registry.indexes, shared=True))
        for version in task.versions.values():
            assert registry.prompt(version, "query").keys.isfinite().all()


def opened(registry):
    """Read the catalogue as a server that starts does."""
    from dptdr.serving.tasks.registry import TaskRegistry

    with contextlib.suppress(ServingError):
        use(TaskRegistry(registry.forward, state=registry.catalogue.folder))


def test_any_damage_to_the_catalogue_is_refused_or_does_no_harm(registry):
    file = registry.catalogue.file
    whole = file.read_bytes()
    before = {path: path.read_bytes() for path in file.parent.rglob("*") if path.is_file()}

    @EXAMPLES
    @given(*DAMAGE)
    def bytes_change(kind, place, byte):
        file.write_bytes(damage(whole, kind, place, byte))
        opened(registry)

    @EXAMPLES
    @given(st.integers(0, 10_000), JSON_VALUES)
    def values_change(where, value):
        file.write_text(exchange(whole.decode(), where, value))
        opened(registry)

    with memory_bounded():
        bytes_change()
        values_change()
    for text in ("[" * 100_000, '{"format_version": ' + "9" * 5000 + "}"):
        file.write_text(text)
        opened(registry)
    file.write_bytes(whole)
    # Reading it wrote and removed nothing.
    assert {p: p.read_bytes() for p in file.parent.rglob("*") if p.is_file()} == before


def test_any_damage_to_a_bundle_is_refused_or_does_no_harm(registry, tmp_path):
    good = write_bundle(tmp_path / "good", registry.backbone, seed=3, ffn_length=2)
    manifest, weights = good / "task.json", good / "prompt.safetensors"
    whole, rows = manifest.read_text(), weights.read_bytes()

    def add():
        """Add the bundle as a task of its own, use it, and remove it."""
        said = ""
        try:
            registry.add("t", good)
            use(registry)
            registry.remove("t")
        except DptdrError as error:
            said = str(error)
        assert "\n" not in said
        assert "t" not in registry.tasks()

    @EXAMPLES
    @given(*DAMAGE)
    def rows_change(kind, place, byte):
        weights.write_bytes(damage(rows, kind, place, byte))
        # Forge what would give the damage away at once.
        values = json.loads(whole) | {"weights_sha256": sha256_file(weights)}
        manifest.write_text(json.dumps(values))
        add()

    @EXAMPLES
    @given(st.integers(0, 10_000), JSON_VALUES)
    def values_change(where, value):
        manifest.write_text(exchange(whole, where, value))
        add()

    @EXAMPLES
    @given(*DAMAGE)
    def bytes_change(kind, place, byte):
        manifest.write_bytes(damage(whole.encode(), kind, place, byte))
        add()

    with memory_bounded():
        rows_change()
        weights.write_bytes(rows)
        values_change()
        bytes_change()


def test_any_damage_to_a_keys_file_is_refused_or_does_no_harm(tmp_path):
    from dptdr.serving.auth import Keyring

    file = tmp_path / "keys.toml"

    def read(content):
        file.write_bytes(content)
        with contextlib.suppress(ConfigError):
            assert not Keyring.read(file).open

    @EXAMPLES
    @given(*DAMAGE)
    def bytes_change(kind, place, byte):
        read(damage(KEYS.encode(), kind, place, byte))

    @EXAMPLES
    @given(st.lists(TOML_PIECES, max_size=30), st.integers(0, len(KEYS)))
    def pieces_come(pieces, place):
        read((KEYS[:place] + "".join(pieces) + KEYS[place:]).encode())

    with memory_bounded():
        bytes_change()
        pieces_come()
