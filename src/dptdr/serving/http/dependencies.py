"""Resolve the task and side of a request."""

from typing import NamedTuple

from fastapi import Request

from dptdr.model.backbone import Side
from dptdr.serving.http.access import key_of, reach, runtime_of
from dptdr.serving.http.errors import Invalid
from dptdr.serving.tasks.prompt_cache import TaskVersion
from dptdr.serving.tasks.registry import BARE


class ResolvedTask(NamedTuple):
    """The task version and side of a request."""

    version: TaskVersion
    side: Side


SIDES: dict[str, Side] = {
    "query": "query",
    "search_query": "query",
    "passage": "passage",
    "document": "passage",
    "search_document": "passage",
}
"""Client names for the two sides."""


def resolve_task(request: Request, model: str | None, *, side: str | None = None) -> ResolvedTask:
    """Resolve the task and side of a request, and apply the task's rate limit.

    With a task in the path, ``model`` may be any name that is not another task's, because some
    clients cannot choose the model; only its side matters. Without either, the only task covered
    by the key is used, but never the bare backbone.

    Args:
        model: ``task`` or ``task@version``, optionally with ``:query`` or ``:passage``.
        side: Side given in another field.

    Raises:
        DptdrError: If the name is unknown or ambiguous, or the key or a rate limit forbids it.
    """
    runtime = runtime_of(request)
    addressed = request.path_params.get("task")
    name, word = _split(addressed or model or _only_task(request))
    task = reach(request, name)
    version = runtime.registry.resolve(name)
    words = [word, side]
    if addressed and model is not None:
        _refuse_another(request, name, model)
        words.append(model.rpartition(":")[2])
    said = {SIDES[given] for given in words if given in SIDES}
    if len(said) > 1:
        raise Invalid(f"task '{name[:100]}': expected either 'query' or 'passage', got both")
    meant = said.pop() if said else _either_side(request, version)
    runtime.rates.take(
        ("task", version.task),
        per_second=runtime.settings.task_requests_per_second,
        what=f"clients of task '{task}'",
    )
    request.scope["dptdr_facts"].update(task=version.name, side=meant)
    return ResolvedTask(version, meant)


def _split(model: str) -> tuple[str, str]:
    name, colon, word = model.partition(":")
    if colon and word not in SIDES:
        raise Invalid(
            f"model '{model[:100]}': expected 'task:query' or 'task:passage' after the colon"
        )
    return name, word


def _refuse_another(request: Request, addressed: str, model: str) -> None:
    """Reject a model that names another task, or version, than the path."""
    known = {*runtime_of(request).registry.tasks(), BARE}
    other, _, version = model.partition(":")[0].partition("@")
    task, _, wanted = addressed.partition("@")
    differs = other != task or version not in ("", wanted)
    if differs and other in known and key_of(request).reaches(other):
        raise Invalid(f"expected task '{addressed}' of the path, got '{model[:100]}'")


def _only_task(request: Request) -> str:
    """Return the only task available to a request that names none.

    Raises:
        Invalid: If there are no tasks, or several.
    """
    runtime = runtime_of(request)
    key = key_of(request)
    served = runtime.registry.tasks()
    names = sorted(name for name in served if key.reaches(name))
    if len(names) == 1:
        return names[0]
    if runtime.bare_only and not served:
        return BARE
    listed = ", ".join(f"'{name}'" for name in names[:20]) + (", ..." if len(names) > 20 else "")
    raise Invalid(
        f"the request names no task and there are {len(names)}; specify one of {listed or 'none'}, "
        f"or '{BARE}' for the bare encoder, or use the path /tasks/NAME/..."
    )


def _either_side(request: Request, version: TaskVersion) -> Side:
    """Return a side for a task that encodes queries and passages identically.

    Raises:
        Invalid: If it does not, so that the side must be specified.
    """
    pooling = runtime_of(request).registry.backbone.pooling
    same = version.prompts["query"] == version.prompts["passage"]
    if not same or pooling.query_prefix != pooling.passage_prefix:
        name = version.task
        raise Invalid(
            f"task '{name}' encodes queries and passages differently; use '{name}:query' or "
            f"'{name}:passage', or set 'input_type' or 'prompt_name', or use the paths "
            f"/tasks/{name}:query and /tasks/{name}:passage"
        )
    # The side with the higher token limit, so that passages are not truncated like queries.
    limits = version.limits
    return "query" if limits.max_query_tokens > limits.max_passage_tokens else "passage"
