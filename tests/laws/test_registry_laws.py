"""Whatever workers add, replace, roll back and remove, and when they die, all see one catalogue."""

import contextlib
import itertools
import shutil
from collections import defaultdict
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

pytest.importorskip("fastapi")

from dptdr.errors import ServingError
from helpers.serving import write_bundle
from helpers.tiny import tiny_backbone

TASKS = st.sampled_from(["law", "medical"])
BUNDLES = st.sampled_from(["one", "two", "three"])
VERSIONS = st.sampled_from(["v", "2"])
WORKERS = st.integers(0, 1)


@dataclass
class Model:
    """A task as it should be: versions with their bundles, and defaults, newest last."""

    versions: dict[str, str] = field(default_factory=dict)
    defaults: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    from dptdr.serving.forward import Forward

    folder = tmp_path_factory.mktemp("law")
    forward = Forward(tiny_backbone("bert"))
    for seed, name in enumerate(("one", "two", "three"), start=1):
        write_bundle(folder / name, forward.backbone, seed=seed)
    return folder, forward


class Catalogue(RuleBasedStateMachine):
    """Two workers on one state folder, beside a model of its tasks."""

    place: tuple
    keys: dict[str, str]

    @initialize()
    def begin(self):
        self.folder, self.forward = self.place
        shutil.rmtree(self.folder / "state", ignore_errors=True)
        self.workers = [self.started(), self.started()]
        self.tasks = {}
        # The bundle of each version that a task ever had, whether or not it was removed.
        self.ever = defaultdict(dict)

    def started(self):
        from dptdr.serving.tasks.registry import TaskRegistry

        return TaskRegistry(self.forward, state=self.folder / "state")

    @rule(worker=WORKERS, task=TASKS, bundle=BUNDLES, default=st.booleans(), reuse=st.booleans())
    def add(self, worker, task, bundle, default, reuse):
        known = self.tasks.get(task, Model())
        there = [v for v, held in known.versions.items() if held == bundle] if reuse else []
        version = self.workers[worker].add(
            task, self.folder / bundle, replace=True, default=default, reuse=reuse
        )
        if there:
            assert version.version in there
        else:
            assert version.version not in self.ever[task]
        self.now_has(task, version.version, bundle, default=default)

    @rule(worker=WORKERS, task=TASKS, bundle=BUNDLES, default=st.booleans(), version=VERSIONS)
    def add_by_name(self, worker, task, bundle, default, version):
        def add():
            self.workers[worker].add(
                task, self.folder / bundle, version=version, replace=True, default=default
            )

        there = task in self.tasks and version in self.tasks[task].versions
        if there or self.ever[task].get(version, bundle) != bundle:
            with pytest.raises(ServingError, match=r"already exists|was another bundle"):
                add()
        else:
            add()
            self.now_has(task, version, bundle, default=default)

    @rule(worker=WORKERS, task=TASKS, bundle=BUNDLES)
    def start_with(self, worker, task, bundle):
        new = bundle not in self.ever[task].values()
        before = {} if task not in self.tasks else self.tasks[task].versions
        kept = self.workers[worker].add_given(task, self.folder / bundle)
        if new:
            (version,) = self.workers[worker].tasks()[task].versions.keys() - before.keys()
            assert version not in self.ever[task]
            self.now_has(task, version, bundle, default=True)
        known = self.tasks.get(task)
        served = known is not None and known.versions[known.defaults[-1]] == bundle
        assert served == (not kept)

    def now_has(self, task, version, bundle, *, default):
        known = self.tasks.setdefault(task, Model())
        known.versions[version] = bundle
        # A client that asks for a version never gets another one's vectors.
        assert self.ever[task].setdefault(version, bundle) == bundle
        if not known.defaults:
            known.defaults = [version]
        elif default and known.defaults[-1] != version:
            known.defaults.append(version)

    @rule(worker=WORKERS, task=TASKS)
    def roll_back(self, worker, task):
        known = self.tasks.get(task, Model())
        if len(known.defaults) < 2:
            with pytest.raises(ServingError):
                self.workers[worker].rollback(task)
            return
        known.defaults.pop()
        assert self.workers[worker].rollback(task).version == known.defaults[-1]

    @rule(worker=WORKERS, task=TASKS, data=st.data())
    def remove(self, worker, task, data):
        known = self.tasks.get(task)
        if known is None:
            with pytest.raises(ServingError):
                self.workers[worker].remove(task)
            return
        version = data.draw(st.sampled_from([None, *known.versions]))
        if version is None or len(known.versions) == 1:
            self.workers[worker].remove(task, version=version)
            del self.tasks[task]
        elif version == known.defaults[-1]:
            with pytest.raises(ServingError, match="is the default"):
                self.workers[worker].remove(task, version=version)
        else:
            self.workers[worker].remove(task, version=version)
            del known.versions[version]
            left = [held for held in known.defaults if held != version]
            known.defaults = [held for held, _ in itertools.groupby(left)]

    @rule(worker=WORKERS)
    def replace_a_worker(self, worker):
        self.workers[worker] = self.started()

    @invariant()
    def every_worker_serves_the_same(self):
        for registry in getattr(self, "workers", ()):
            with contextlib.suppress(ServingError):
                registry.resolve("law")
            registry.refresh()
            served = registry.tasks()
            assert served.keys() == self.tasks.keys()
            assert not registry.broken
            for name, known in self.tasks.items():
                assert served[name].versions.keys() == known.versions.keys()
                assert registry.resolve(name).version == known.defaults[-1]
                assert list(served[name].record.history) == known.defaults[:-1]
                for version, bundle in known.versions.items():
                    held = registry.resolve(f"{name}@{version}")
                    assert held.file.key == self.keys[bundle]


def test_all_workers_see_one_catalogue_whatever_happens(place):
    from dptdr.serving.tasks.catalogue import bundle_key

    Catalogue.place = place
    Catalogue.keys = {name: bundle_key(place[0] / name) for name in ("one", "two", "three")}
    machine = Catalogue.TestCase
    machine.settings = settings(
        max_examples=25,
        stateful_step_count=12,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    machine().runTest()
