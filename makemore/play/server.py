"""Web server of ``makemore play``: a page and its JSON API.

It listens on 127.0.0.1 only, and every API request needs a token in a header. The page reads the token from
its own address, after ``#``: browsers neither send nor log that part.
"""

from __future__ import annotations

import secrets
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from makemore.corpus.decoding import normalize_newlines
from makemore.errors import UserError
from makemore.evaluation.adaptive import Reader
from makemore.evaluation.evaluate import adaptive_reader
from makemore.play.lookahead import Predictions, learn_from, predict
from makemore.runs.run import Run
from makemore.sampling import SampleParams
from makemore.sampling.text import SampleRequest, context_ids, random_seed, sample, stream_text

HOST = "127.0.0.1"
PAGE = Path(__file__).with_name("page")
FILES = {"/": "index.html", "/play.css": "play.css", "/play.js": "play.js"}
MAX_BYTES = 1_000_000
"""Maximum size of a request."""
MAX_SAMPLES, MAX_NEW_TOKENS = 100, 5000
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Query(BaseModel):
    """The JSON body of a request."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())
    run: Any = None
    adaptive: bool = False
    text: Annotated[str, AfterValidator(normalize_newlines)] = ""
    at: int | None = None
    n: int | None = Field(None, ge=1, le=MAX_SAMPLES)
    max_new_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)
    seed: int | None = Field(None, ge=0, lt=2**63)
    temperature: float | None = Field(None, ge=0, le=100)
    top_k: int | None = Field(None, ge=1, le=2**31)
    top_p: float | None = Field(None, ge=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)

    @property
    def params(self) -> SampleParams:
        temperature = 1.0 if self.temperature is None else self.temperature
        return SampleParams(temperature, self.top_k, self.top_p, self.min_p)


class Handlers:
    """Request handlers for a set of runs."""

    def __init__(self, runs: Mapping[str, Run], token: str) -> None:
        self.runs, self.token = runs, token
        self._readers: dict[str, Reader] = {}

    async def page(self, request: Request) -> Response:
        """Serve the page's static files, which need no token."""
        return FileResponse(PAGE / FILES[request.url.path], headers=HEADERS)

    async def about(self, request: Request) -> Response:
        """List the runs."""
        await self._read_query(request)
        runs = [_describe(name, run) for name, run in self.runs.items()]
        return JSONResponse({"runs": runs}, headers=HEADERS)

    async def predict(self, request: Request) -> Response:
        """Predict each token of a text with a run."""
        query = await self._read_query(request)
        result = await run_in_threadpool(self._predict, query)
        return JSONResponse(asdict(result), headers=HEADERS)

    def _predict(self, query: Query) -> Predictions:
        reader = self._reader(query) if query.adaptive and query.text else None
        return predict(self._run(query), query.text, query.params, query.at, reader)

    async def sample(self, request: Request) -> Response:
        """Stream samples that continue a text: lines, or one running text."""
        query = await self._read_query(request)
        run, text = self._run(query), query.text
        sample_request = SampleRequest(
            n=query.n or 10,
            prompt=text.rpartition("\n")[2] if run.mode == "lines" else text,
            max_new_tokens=query.max_new_tokens,
            params=query.params,
            seed=random_seed() if query.seed is None else query.seed,
            skip_unknown=True,
        )
        ids = context_ids(run, sample_request)  # reject a bad prompt before the response starts
        if query.adaptive and sample_request.prompt:
            run = await run_in_threadpool(lambda: learn_from(run, self._reader(query), ids))
        pieces = _lines(run, sample_request) if run.mode == "lines" else stream_text(run, sample_request)
        return StreamingResponse(pieces, media_type="text/plain; charset=utf-8", headers=HEADERS)

    async def _read_query(self, request: Request) -> Query:
        """Check the token and parse the JSON body. Raises HTTPException."""
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not secrets.compare_digest(token.encode(), self.token.encode()):
            raise HTTPException(401, "wrong token; open the address that makemore play printed")
        body = b""
        try:
            async for piece in request.stream():
                body += piece
                if len(body) > MAX_BYTES:
                    raise HTTPException(413, f"the request exceeds {MAX_BYTES:,} bytes")
            return Query.model_validate_json(body or b"{}")
        except ClientDisconnect:
            raise HTTPException(400, "the request is incomplete") from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            if not first["loc"]:  # it isn't a JSON object
                raise HTTPException(400, f"the request can't be read: {first['msg']}") from None
            raise HTTPException(422, f"{first['loc'][0]}: {first['msg']}") from None

    def _run(self, query: Query) -> Run:
        run = self.runs.get(query.run) if isinstance(query.run, str) else None
        if run is None:
            raise HTTPException(404, "no such run")
        return run

    def _reader(self, query: Query) -> Reader:
        """The reader of a run, made once: gradients are scaled by the training text."""
        if query.run not in self._readers:
            self._readers[query.run] = adaptive_reader(self._run(query))
        return self._readers[query.run]


def make_app(runs: Mapping[str, Run], token: str) -> Starlette:
    """Build the application: the page at ``/`` and its API under ``/api``."""
    handlers = Handlers(runs, token)
    routes = [Route(path, handlers.page) for path in FILES]
    routes += [Route("/api/runs", handlers.about)]
    routes += [Route("/api/predict", handlers.predict, methods=["POST"])]
    routes += [Route("/api/sample", handlers.sample, methods=["POST"])]
    return Starlette(
        routes=routes,
        # Prevent DNS rebinding: reject other host names that resolve to this server.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
        exception_handlers={HTTPException: _error_response, UserError: _error_response},
    )


def listen(port: int) -> socket.socket:
    """Listen on 127.0.0.1; port 0 picks a free one. Raises UserError if the port is in use."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":
            # On Windows SO_REUSEADDR would let two processes share the port.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else "invalid port"
        raise UserError(f"--port {port}: {reason}; use 0 for a free port") from None
    return listener


def serve(app: Starlette, listener: socket.socket) -> None:
    """Serve until a signal, on which uvicorn raises KeyboardInterrupt."""
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, ws="none")
    uvicorn.Server(config).run(sockets=[listener])


async def _error_response(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        error = HTTPException(422, str(error))
    return JSONResponse({"error": error.detail}, error.status_code, {**HEADERS, **(error.headers or {})})


def _describe(name: str, run: Run) -> dict[str, Any]:
    return {
        "name": name,
        "model": run.config.model.name,
        "parameters": run.model.n_parameters(),
        "mode": run.mode,
        "tokenizer": run.config.tokenizer,
        "vocab_size": run.tokenizer.vocab_size,
        "text": run.config.text.name,
    }


def _lines(run: Run, request: SampleRequest) -> Iterator[str]:
    return (f"{line}\n" for line in sample(run, request))
