"""The application: routes, errors and surroundings around one runtime. Thin on purpose."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI

import dptdr
from dptdr.errors import DptdrError
from dptdr.serving.http import admin, embedding, routes
from dptdr.serving.http import errors as problems
from dptdr.serving.http.dependencies import ClientDisconnected
from dptdr.serving.http.middleware import Surroundings, make_logger
from dptdr.serving.runtime import Runtime


def build_app(runtime: Runtime, *, logger: Any = None) -> FastAPI:
    """Return the application of one worker; it loads the runtime while it answers 503.

    Args:
        runtime: What the worker holds.
        logger: Takes one event per request; JSON lines on standard error by default.

    Returns:
        The application.
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
        description="Many retrieval tasks on one encoder: vectors, search, and the tasks "
        "themselves.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.runtime = runtime
    app.include_router(routes.router)
    app.include_router(embedding.router)
    app.include_router(admin.router)
    problems.install(app)
    app.add_exception_handler(ClientDisconnected, routes.hung_up)
    app.add_middleware(
        Surroundings,
        metrics=runtime.metrics,
        max_body_bytes=runtime.settings.max_body_bytes,
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
        runtime.failure = DptdrError(f"the server cannot start: {error!r}")
    if runtime.failure is not None:
        log.error("cannot start", error=str(runtime.failure))
        return
    log.info(
        "ready",
        backbone=runtime.registry.backbone.name,
        layout=runtime.registry.forward.layout,
        tasks=len(runtime.registry.tasks()),
        broken=len(runtime.registry.broken),
    )
