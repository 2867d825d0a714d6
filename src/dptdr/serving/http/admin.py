"""What administrators ask for: tasks in and out while requests run, and the self-check."""

from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from dptdr.serving.http import schemas
from dptdr.serving.http.access import GuardedRoute, key_of, reach, runtime_of
from dptdr.serving.http.errors import without_folders
from dptdr.serving.http.responses import json_response, reply_of
from dptdr.serving.runtime import CHECK_TEXTS, Runtime, allowed_bundle
from dptdr.serving.tasks.prompt_cache import TaskVersion
from dptdr.serving.tasks.registry import Task, UnknownTask

router = APIRouter(prefix="/v1", route_class=GuardedRoute)


@router.get("/tasks", responses=reply_of(schemas.TaskList))
async def tasks(request: Request) -> Response:
    """List the tasks that the key reaches."""
    key = key_of(request)
    runtime = runtime_of(request)
    found = [
        describe(name, task, runtime)
        for name, task in sorted(runtime.registry.tasks().items())
        if key.reaches(name)
    ]
    broken = {
        name: why
        for name, why in runtime.registry.broken.items()
        if key.reaches(name.partition("@")[0]) and "administer" in key.scopes
    }
    if runtime.registry.unreadable and key.reaches_all and "administer" in key.scopes:
        broken["catalogue"] = runtime.registry.unreadable
    return json_response(
        {"tasks": found, "broken": {name: without_folders(why) for name, why in broken.items()}}
    )


@router.get("/tasks/{task}", responses=reply_of(schemas.TaskInfo))
async def one_task(task: str, request: Request) -> Response:
    """Describe one task."""
    return _described(task, runtime_of(request))


@router.post("/tasks", responses=reply_of(schemas.TaskInfo, status=201), status_code=201)
async def add(body: schemas.NewTask, request: Request) -> Response:
    """Add a task from a bundle in the tasks folder."""
    return await _add(body.task, body, request, replace=False)


@router.put("/tasks/{task}", responses=reply_of(schemas.TaskInfo))
async def replace(task: str, body: schemas.NewVersion, request: Request) -> Response:
    """Add a version to a task, or the task itself; the former version stays for rollback."""
    return await _add(task, body, request, replace=True)


async def _add(task: str, body: schemas.NewVersion, request: Request, *, replace: bool) -> Response:
    reach(request, task)
    key_of(request).demand_bundle(body.bundle)
    runtime = runtime_of(request)

    def work() -> None:
        bundle = allowed_bundle(body.bundle, folder=runtime.settings.tasks_folder)
        runtime.registry.add(
            task, bundle, version=body.version, default=body.default, replace=replace
        )

    await run_in_threadpool(work)
    request.scope["dptdr_facts"]["task"] = task
    return _described(task, runtime, status=200 if replace else 201)


@router.delete("/tasks/{task}", responses=reply_of(None, status=204), status_code=204)
async def remove(task: str, request: Request, version: str | None = None) -> Response:
    """Remove a task, or one version of it; requests that run finish with what they hold."""
    registry = runtime_of(request).registry
    await run_in_threadpool(registry.remove, task, version=version)
    return Response(status_code=204)


@router.post("/tasks/{task}/rollback", responses=reply_of(schemas.TaskInfo))
async def rollback(task: str, request: Request) -> Response:
    """Let the task's name mean its former default version again."""
    runtime = runtime_of(request)
    await run_in_threadpool(runtime.registry.rollback, task)
    return _described(task, runtime)


@router.put("/tasks/{task}/default", responses=reply_of(schemas.TaskInfo))
async def set_default(task: str, body: schemas.DefaultVersion, request: Request) -> Response:
    """Let the task's name mean another version."""
    runtime = runtime_of(request)
    await run_in_threadpool(runtime.registry.set_default, task, body.version)
    return _described(task, runtime)


@router.post("/self-check", responses=reply_of(schemas.SelfCheck))
async def self_check(request: Request) -> Response:
    """Compare a random mixture of all tasks with each row computed alone, now."""
    report = await run_in_threadpool(runtime_of(request).engine.check, CHECK_TEXTS)
    return json_response(report._asdict())


def _described(task: str, runtime: Runtime, *, status: int = 200) -> Response:
    found = runtime.registry.tasks().get(task)
    if found is None:
        raise UnknownTask(f"unknown task '{task[:100]}'; see /v1/tasks")
    return json_response(describe(task, found, runtime), status=status)


def describe(name: str, task: Task, runtime: Runtime) -> dict[str, Any]:
    """Return a task as replies show it."""
    default = task.versions.get(task.record.default)
    return {
        "task": name,
        "default": task.record.default,
        "history": list(task.record.history),
        "searchable": default is not None
        and any(served.fits(default) for served in runtime.searcher.indexes),
        "versions": [
            _version(version, default=version.version == task.record.default)
            for version in task.versions.values()
        ],
    }


def _version(version: TaskVersion, *, default: bool) -> dict[str, Any]:
    assert version.manifest is not None
    assert version.config is not None
    return {
        "version": version.version,
        "default": default,
        "added": version.added,
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
