"""Serve a deployed directory over HTTP. Needs the extra ``serve``, a runtime for the files, and no torch."""

from __future__ import annotations

import html
import logging
import os
import socket
from collections.abc import Callable
from importlib import metadata
from typing import Annotated, Any

import anyio
import numpy as np
import uvicorn
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tutelage.core.errors import TutelageError
from tutelage.deploy.predictor import Prediction, Predictor
from tutelage.deploy.uploads import EXAMPLE, FIELD, Limits, classify, read_files, upload_schema

MOST_THREADS = 8  # that decode and classify; each may hold an image of `Limits.megapixels`
MOST_CLASSES = 1000  # of each prediction
SECONDS_TO_STOP = 10  # that requests have to end when the server is stopped
HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"content-security-policy": b"default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'",
}


class Answer(BaseModel):
    """A prediction for each image of a request, in its order."""

    predictions: list[Prediction]


class Health(BaseModel):
    """That the server answers, and with which model."""

    status: str
    model: str
    file: str
    classes: int


class Metrics:
    """What the server counts, for Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tutelage_requests", "Requests that were answered.", ["path", "status"], registry=self.registry
        )
        self.images = Counter("tutelage_images", "Images that were classified.", registry=self.registry)
        self.deferred = Counter(
            "tutelage_deferred", "Images that were handed to the teacher.", registry=self.registry
        )
        self.waiting = Gauge(
            "tutelage_waiting", "Requests that are read or classified.", registry=self.registry
        )
        self.seconds = Histogram(
            "tutelage_predict_seconds",
            "Time from the beginning of a request to its answer.",
            registry=self.registry,
        )


def make_app(predictor: Predictor, limits: Limits | None = None) -> FastAPI:
    """Make the ASGI application, which any ASGI server can run.

    Args:
        predictor: the model.
        limits: of requests; None: the default ones.
    """
    limits = limits or Limits()
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # clients get its remarks on their forms
    metrics = Metrics()
    waiting = _Waiting(metrics.waiting)
    threads = anyio.CapacityLimiter(min(os.cpu_count() or 1, MOST_THREADS))
    manifest = predictor.manifest
    app = FastAPI(
        title="tutelage",
        version=metadata.version("tutelage"),
        summary=f"{manifest.model}: {len(manifest.labels):,} classes",
        docs_url=None,  # FastAPI's pages load scripts from other servers
        redoc_url=None,
    )
    app.add_middleware(_Counted, metrics=metrics)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _failed)

    @app.post(
        "/predict", summary="Classify images", openapi_extra=upload_schema(limits), responses=_refusals()
    )
    async def predict(request: Request, top: Annotated[int, Query(ge=1, le=MOST_CLASSES)] = 5) -> Answer:
        """Each file of the form's field `images` gets its most probable classes."""
        if waiting.count >= limits.waiting:
            raise HTTPException(
                503, "too many requests are waiting; try again in a second", {"Retry-After": "1"}
            )
        with waiting, metrics.seconds.time():
            files = await read_files(request, limits)
            found = [
                await anyio.to_thread.run_sync(
                    classify, predictor, name, content, top, limits, limiter=threads
                )
                for name, content in files
            ]
        metrics.images.inc(len(found))
        metrics.deferred.inc(sum(one.deferred for one in found))
        return Answer(predictions=found)

    @app.get("/healthz", summary="Whether the server answers")
    async def healthz() -> Health:
        """For a load balancer or a container's health check."""
        return Health(
            status="ok", model=manifest.model, file=predictor.file.name, classes=len(manifest.labels)
        )

    @app.get("/metrics", summary="Counters for Prometheus", response_class=PlainTextResponse)
    async def show_metrics() -> PlainTextResponse:
        """Requests by path and status, images, requests that wait, and how long predictions take."""
        return PlainTextResponse(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_page(app))

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/docs")

    return app


def run(app: FastAPI, host: str, port: int, ready: Callable[[str], object], waiting: int) -> None:
    """Serve an application until SIGINT or SIGTERM; requests that have begun are finished.

    Args:
        app: the application.
        host: address or name to listen at.
        port: TCP port; 0: any free one.
        ready: called with the address of the server when it accepts requests.
        waiting: of `Limits`; more connections than a few times as many are refused.

    Raises:
        TutelageError: the address cannot be used.
    """
    listening = listen(host, port)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=4 * waiting + 1,
        timeout_graceful_shutdown=SECONDS_TO_STOP,
    )
    ready(address(host, listening))
    uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """Open the socket of a server.

    Raises:
        TutelageError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise TutelageError(
            f"--host {host} --port {port}: {error.strerror or error}; use another, such as --host 127.0.0.1 --port 0"
        ) from None


def address(host: str, listening: socket.socket) -> str:
    """The address to open in a browser."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listening.getsockname()[1]}/"


def warm_up(predictor: Predictor) -> None:
    """Run the model once, so that the first request does not wait for what is done at a first run."""
    spec = predictor.manifest.input_spec
    predictor.logits(np.zeros((spec.height, spec.width, 3), np.uint8))


class _Waiting:
    """Counts the requests that are being handled."""

    def __init__(self, gauge: Gauge) -> None:
        self.count = 0
        self._gauge = gauge

    def __enter__(self) -> None:
        self.count += 1
        self._gauge.set(self.count)

    def __exit__(self, *_: object) -> None:
        self.count -= 1
        self._gauge.set(self.count)


class _Counted:
    """Counts the answers by path and status, and adds `HEADERS` to them."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = scope["path"] in {
                    "/predict",
                    "/healthz",
                    "/metrics",
                }  # a client must not make up labels
                self.metrics.requests.labels(scope["path"] if known else "other", message["status"]).inc()
                message["headers"] = [*message.get("headers", []), *HEADERS.items()]
            await send(message)

        await self.app(scope, receive, counted)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """A query that is not valid, as one line in place of a list of objects."""
    assert isinstance(error, RequestValidationError)
    lines = [f"{one['loc'][-1]}: {one['msg']}" for one in error.errors()]
    return JSONResponse({"detail": " ".join("; ".join(lines).split())}, 422)


async def _failed(_: Request, __: Exception) -> JSONResponse:
    """A fault of the server, whose traceback is in its own log only."""
    return JSONResponse({"detail": "the server failed; its log has the reason"}, 500)


def _refusals() -> dict[int | str, dict[str, Any]]:
    return {
        400: {"description": "The form cannot be read."},
        408: {"description": "The request took too long to arrive."},
        413: {"description": "The request or an image is too large."},
        415: {"description": "The body is not a form with files."},
        422: {"description": "A file is not an image, or a value is not valid."},
        503: {"description": "Too many requests are waiting."},
    }


def _page(app: FastAPI) -> str:
    """The API as a page that loads nothing from elsewhere."""
    described = app.openapi()
    parts = []
    for path, methods in described["paths"].items():
        for method, one in methods.items():
            codes = ", ".join(one.get("responses", {}))
            text = html.escape(one.get("description", ""))
            parts.append(
                f"<h2><code>{method.upper()} {html.escape(path)}</code> {html.escape(one['summary'])}</h2>"
                f"<p>{text}</p><p>Answers: {codes}</p>"
            )
    info = described["info"]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(info['title'])}</title>"
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem}"
        "h2{font-size:1rem;margin-top:2rem}code{background:#8882;padding:.1rem .3rem}</style>"
        f"<h1>{html.escape(info['title'])}</h1><p>{html.escape(info.get('summary', ''))}</p>"
        f"<form action=/predict method=post enctype=multipart/form-data><label>Images <input type=file name={FIELD} "
        "multiple required></label> <button>Classify</button></form>"
        f"<p><code>{html.escape(EXAMPLE)} ADDRESS/predict</code></p>{''.join(parts)}"
        "<p>The whole description is <a href=/openapi.json>openapi.json</a>.</p></html>"
    )
