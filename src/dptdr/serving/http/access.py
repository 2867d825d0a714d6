"""Access control: a rule per route, and a single check of key, scope, task and rate.

The check runs before the body is read. Tasks named in the body are checked by the same
:func:`reach` once the body is parsed.
"""

import ipaddress
from collections.abc import Awaitable, Callable, Collection
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from dptdr.serving.auth import Forbidden, Key, Scope, Unauthorized
from dptdr.serving.http import schemas
from dptdr.serving.http.errors import Invalid
from dptdr.serving.runtime import Runtime


class Access(NamedTuple):
    """Required scope of a route (``None``: no key), and whether the key must cover all tasks."""

    scope: Scope | None
    all_tasks: bool = False


_OPEN = Access(None)
_USE = Access("use")
_ADMINISTER = Access("administer")

ACCESS: dict[tuple[str, str], Access] = {
    ("GET", "/"): _OPEN,
    ("GET", "/docs"): _OPEN,
    ("GET", "/health"): _OPEN,
    ("GET", "/info"): _USE,
    ("GET", "/openapi.json"): _USE,
    ("GET", "/metrics"): _USE,
    ("GET", "/v1/models"): _USE,
    ("GET", "/v1/models/{model}"): _USE,
    ("POST", "/v1/embeddings"): _USE,
    ("POST", "/embeddings"): _USE,
    ("POST", "/embed"): _USE,
    ("POST", "/embed_all"): _USE,
    ("POST", "/similarity"): _USE,
    ("POST", "/tokenize"): _USE,
    ("POST", "/rerank"): _USE,
    ("POST", "/tasks/{task}"): _USE,
    ("POST", "/tasks/{task}/v1/embeddings"): _USE,
    ("POST", "/tasks/{task}/embeddings"): _USE,
    ("POST", "/tasks/{task}/embed"): _USE,
    ("POST", "/tasks/{task}/embed_all"): _USE,
    ("POST", "/tasks/{task}/similarity"): _USE,
    ("POST", "/tasks/{task}/tokenize"): _USE,
    ("POST", "/v1/search"): _USE,
    ("GET", "/v1/tasks"): _USE,
    ("GET", "/v1/tasks/{task}"): _USE,
    ("POST", "/v1/tasks"): _ADMINISTER,
    ("PUT", "/v1/tasks/{task}"): _ADMINISTER,
    ("DELETE", "/v1/tasks/{task}"): _ADMINISTER,
    ("POST", "/v1/tasks/{task}/rollback"): _ADMINISTER,
    ("PUT", "/v1/tasks/{task}/default"): _ADMINISTER,
    ("POST", "/v1/indexes"): _ADMINISTER,
    ("POST", "/v1/self-check"): Access("administer", all_tasks=True),
}
"""Access rules of all routes; a route without a rule cannot be registered."""


def runtime_of(request: Request) -> Runtime:
    """Return the worker's runtime."""
    runtime: Runtime = request.app.state.runtime
    return runtime


class GuardedRoute(APIRoute):
    """A route that checks access and counts the request before reading the body."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """Wrap the handler with the access check."""
        handle: Any = super().get_route_handler()
        needs = {method: ACCESS[method, self.path_format] for method in self.methods or ()}
        known = {field.alias for field in self.dependant.query_params}

        async def guarded(request: Request) -> Response:
            admit(request, needs[request.method])
            if needs[request.method].scope == "administer":
                _check_query(request, known=known)
            runtime = runtime_of(request)
            if runtime.loaded and not runtime.registry.is_current:
                # Loading another worker's changes takes time; do not block other requests.
                await run_in_threadpool(runtime.registry.refresh)
            response: Response = await handle(schemas.JsonRequest(request.scope, request.receive))
            return response

        return guarded


def _check_query(request: Request, *, known: Collection[str]) -> None:
    """Reject unknown or repeated query parameters.

    A misspelled ``version``, for example, would otherwise make the request act on something else.
    """
    names = [name for name, _ in request.query_params.multi_items()]
    for name in names:
        if name not in known or names.count(name) > 1:
            wanted = ", ".join(sorted(known)) or "none"
            raise Invalid(
                f"query parameter '{name[:100]}': expected each of ({wanted}) at most once"
            )


def admit(request: Request, needs: Access) -> None:
    """Check a request's key, its rate, and the task in its path.

    Raises:
        Unauthorized: If a key is required and missing or unknown.
        Forbidden: If the key lacks permission.
        RateLimited: If the rate limit is exceeded.
    """
    if needs.scope is None:
        return
    runtime = runtime_of(request)
    per_second = runtime.settings.requests_per_second
    try:
        key = runtime.keyring.find(_secret(request))
    except Unauthorized:
        who = request.client.host if request.client else ""
        what = "clients without a valid key"
        runtime.rates.take(("refused", who), per_second=per_second, what=what)
        raise
    request.scope["dptdr_facts"]["key"] = key.name
    request.scope["dptdr_access"] = (key, needs.scope)
    runtime.rates.take(
        # Not by name, which keys with other limits may share.
        ("key", key),
        per_second=per_second if key.requests_per_second is None else key.requests_per_second,
        what=f"key '{key.name}'",
    )
    key.demand(needs.scope)
    if needs.all_tasks and not key.reaches_all:
        raise Forbidden(f"this route requires access to all tasks, which key '{key.name}' lacks")
    for part in ("task", "model"):
        if part in request.path_params:
            reach(request, request.path_params[part])


def _secret(request: Request) -> str | None:
    kind, _, secret = request.headers.get("authorization", "").partition(" ")
    bearer = secret.strip() if kind.lower() == "bearer" else ""
    given = bearer or request.headers.get("x-api-key", "")
    try:
        # Headers are read as Latin-1, but most clients send UTF-8.
        return given.encode("latin-1").decode("utf-8") or None
    except UnicodeError:
        return given


def key_of(request: Request) -> Key:
    """Return the key of an admitted request."""
    key: Key = request.scope["dptdr_access"][0]
    return key


def reach(request: Request, name: str) -> str:
    """Return the bare task name, without version and side, if the request's key covers it.

    Raises:
        Forbidden: If the key does not cover it, whether or not it exists.
    """
    key, scope = request.scope["dptdr_access"]
    task = name.partition(":")[0].partition("@")[0]
    key.demand(scope, task)
    return task


def cross_site_reason(
    method: str, headers: Collection[tuple[bytes, bytes]], *, hosts: Collection[str]
) -> str:
    """Return why an open server rejects a cross-site request, or an empty string if it does not.

    An unknown host name may be a DNS-rebinding attack; an IP address cannot be.
    """
    found = {name: value.decode("latin-1") for name, value in headers}
    host = found.get(b"host")
    if host is not None and not _is_ours(_host_name(host), hosts):
        return (
            f"host '{host[:100]}' is not a known name of this server; use its IP address, or start "
            "it with --allowed-host NAME"
        )
    if method in ("GET", "HEAD", "OPTIONS"):
        return ""
    if found.get(b"sec-fetch-site", "none") not in ("none", "same-origin"):
        return "pages of other origins may not access this server"
    origin = found.get(b"origin")
    if origin is not None:
        try:
            netloc = urlsplit(origin).netloc.lower()
        except ValueError:
            return f"origin '{origin[:100]}' is not a valid URL"
        name = _host_name(netloc)
        # A proxy may have replaced the host; its public name has no port to compare.
        proxied = name in hosts and not _is_local(name) and name != _host_name(host or "")
        if netloc != (host or "").lower() and not proxied:
            return f"pages on '{origin[:100]}' may not access this server"
    return ""


def _is_ours(name: str, hosts: Collection[str]) -> bool:
    return _is_local(name) or name in hosts


def _is_local(name: str) -> bool:
    """Check whether a host is an IP address or ``localhost``."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _host_name(host: str) -> str:
    """Return a host in lower case, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")
