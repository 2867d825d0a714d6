"""The FastAPI application: routes, error handlers and middleware around a runtime."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI

import dptdr
from dptdr.errors import DptdrError
from dptdr.serving.http import admin, embedding, errors, routes
from dptdr.serving.http.middleware import RequestMiddleware, make_logger
from dptdr.serving.runtime import Runtime


def build_app(runtime: Runtime, *, logger: Any = None) -> FastAPI:
    """Build a worker's application, which responds with 503 while the runtime is loading.

    Args:
        logger: Receives one event per request; JSON lines on standard error by default.
    """
    log = make_logger() if logger is None else logger

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        loading = asyncio.create_task(asyncio.to_thread(_load, runtime, log))
        try:
            yield
        finally:
            runtime.draining = True
            await loading
            finished = await asyncio.to_thread(runtime.stop)
            log.info("stopped", finished=finished)

    app = FastAPI(
        title="dptdr",
        version=dptdr.__version__,
        description="Many retrieval tasks on one encoder: embeddings, search and task management.",
        lifespan=lifespan,
        # FastAPI's pages load scripts from a CDN; /docs is our own.
        docs_url=None,
        redoc_url=None,
        # Our own route, which requires a key.
        openapi_url=None,
    )
    app.state.runtime = runtime
    for room in (routes, embedding, admin):
        app.include_router(room.router)
    errors.install(app)
    app.add_middleware(
        RequestMiddleware,
        metrics=runtime.metrics,
        max_body_bytes=runtime.settings.max_body_kb * 1000,
        receive_seconds=runtime.settings.receive_seconds,
        hosts=frozenset(runtime.settings.hosts) if runtime.keyring.open else None,
        logger=log,
    )
    return app


def _load(runtime: Runtime, log: Any) -> None:
    try:
        if not runtime.loaded:
            runtime.load()
    except DptdrError as error:
        runtime.failure = error
    except Exception as error:
        runtime.failure = DptdrError(f"cannot start the server: {error!r}")
    if runtime.failure is not None:
        log.error("cannot start", error=str(runtime.failure))
        return
    registry = runtime.registry
    log.info(
        "ready",
        backbone=registry.backbone.name,
        layout=registry.forward.layout,
        tasks=len(registry.tasks()),
        broken=len(registry.broken),
    )
