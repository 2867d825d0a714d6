"""Admin routes: change tasks and indexes at run time, and run the self-check."""

from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from dptdr.serving.http import schemas
from dptdr.serving.http.access import GuardedRoute, key_of, reach, runtime_of
from dptdr.serving.http.errors import without_folders
from dptdr.serving.http.responses import json_response, reply_of
from dptdr.serving.runtime import CHECK_TEXTS, allowed_folder
from dptdr.serving.tasks.indexes import Indexes
from dptdr.serving.tasks.prompt_cache import TaskVersion
from dptdr.serving.tasks.registry import ServedTask, UnknownTask

router = APIRouter(prefix="/v1", route_class=GuardedRoute)


@router.get("/tasks", responses=reply_of(schemas.TaskList))
async def tasks(request: Request) -> Response:
    """List the tasks that the key covers."""
    key = key_of(request)
    registry = runtime_of(request).registry
    found = [
        describe(name, task, registry.indexes, shared=key.reaches_all)
        for name, task in sorted(registry.tasks().items())
        if key.reaches(name)
    ]
    broken = {}
    if "administer" in key.scopes:
        reached = {n: w for n, w in registry.broken.items() if key.reaches(n.partition("@")[0])}
        broken = {name: without_folders(why) for name, why in reached.items()}
        if registry.unreadable and key.reaches_all:
            broken["catalogue"] = without_folders(registry.unreadable)
    return json_response({"tasks": found, "broken": broken})


@router.get("/tasks/{task}", responses=reply_of(schemas.TaskInfo))
async def one_task(task: str, request: Request) -> Response:
    """Describe one task."""
    return _described(task, request)


@router.post("/tasks", responses=reply_of(schemas.TaskInfo, status=201), status_code=201)
async def add(body: schemas.NewTask, request: Request) -> Response:
    """Add a task, and optionally its index, from the tasks folder."""
    return await _add(body.task, body, request, replace=False)


@router.put("/tasks/{task}", responses=reply_of(schemas.TaskInfo))
async def replace(task: str, body: schemas.NewVersion, request: Request) -> Response:
    """Add a version (and the task, if new); earlier versions are kept for rollback."""
    return await _add(task, body, request, replace=True)


async def _add(task: str, body: schemas.NewVersion, request: Request, *, replace: bool) -> Response:
    reach(request, task)
    for folder in filter(None, (body.bundle, body.index)):
        key_of(request).demand_folder(folder)
    runtime = runtime_of(request)

    def work() -> None:
        runtime.registry.add(
            task,
            allowed_folder(body.bundle, folder=runtime.settings.tasks_folder, what="bundle"),
            version=body.version,
            default=body.default,
            replace=replace,
            index=body.index,
        )

    await run_in_threadpool(work)
    return _described(task, request, status=200 if replace else 201)


@router.post("/indexes", responses=reply_of(schemas.TaskInfo))
async def replace_index(body: schemas.NewIndex, request: Request) -> Response:
    """Switch a task to a different index from the tasks folder."""
    reach(request, body.task)
    key_of(request).demand_folder(body.index)
    registry = runtime_of(request).registry
    await run_in_threadpool(registry.set_index, body.task, body.index, version=body.version)
    return _described(body.task, request)


@router.delete("/tasks/{task}", responses=reply_of(None, status=204), status_code=204)
async def remove(task: str, request: Request, version: str | None = None) -> Response:
    """Remove a task or one of its versions; running requests finish normally."""
    await run_in_threadpool(runtime_of(request).registry.remove, task, version=version)
    return Response(status_code=204)


@router.post("/tasks/{task}/rollback", responses=reply_of(schemas.TaskInfo))
async def rollback(task: str, request: Request) -> Response:
    """Roll back to the previous default version."""
    await run_in_threadpool(runtime_of(request).registry.rollback, task)
    return _described(task, request)


@router.put("/tasks/{task}/default", responses=reply_of(schemas.TaskInfo))
async def set_default(task: str, body: schemas.DefaultVersion, request: Request) -> Response:
    """Set the default version."""
    await run_in_threadpool(runtime_of(request).registry.set_default, task, body.version)
    return _described(task, request)


@router.post("/self-check", responses=reply_of(schemas.SelfCheck))
async def self_check(request: Request) -> Response:
    """Compare a random batch of up to 24 tasks with the same texts encoded one by one."""
    report = await run_in_threadpool(runtime_of(request).engine.check, CHECK_TEXTS)
    return json_response(report._asdict())


def _described(task: str, request: Request, *, status: int = 200) -> Response:
    request.scope["dptdr_facts"]["task"] = task[:100]
    registry = runtime_of(request).registry
    found = registry.tasks().get(task)
    if found is None:
        raise UnknownTask(f"unknown task '{task[:100]}'; see /v1/tasks")
    return json_response(
        describe(task, found, registry.indexes, shared=key_of(request).reaches_all), status=status
    )


def describe(name: str, task: ServedTask, indexes: Indexes, *, shared: bool) -> dict[str, Any]:
    """Format a task for a response."""
    default = task.versions.get(task.record.default)
    return {
        "task": name,
        "default": task.record.default,
        "history": list(task.record.history),
        "searchable": default is not None and indexes.of(default, shared=shared) is not None,
        "versions": [
            _version(version, default=version is default) for version in task.versions.values()
        ],
    }


def _version(version: TaskVersion, *, default: bool) -> dict[str, Any]:
    assert version.manifest is not None
    assert version.config is not None
    return {
        "version": version.version,
        "default": default,
        "added": version.added,
        "index": None if version.index is None else version.index.name,
        "method": version.manifest.method,
        "prompt_length": version.config.prompt_length,
        "sharing": version.config.sharing,
        "trained_parameters": version.manifest.trained_parameters,
        "query_fingerprint": version.fingerprints["query"],
        "passage_fingerprint": version.fingerprints["passage"],
        "max_query_tokens": version.limits.max_query_tokens,
        "max_passage_tokens": version.limits.max_passage_tokens,
        "measures": version.manifest.measures,
    }
