"""Web server of ``makemore play``: a page and its JSON API.

It listens on 127.0.0.1 only, and every API request needs a token in a header. The page reads the token from
its own address, after ``#``: browsers neither send nor log that part.
"""

from __future__ import annotations

import secrets
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from makemore.corpus.decoding import normalize_newlines
from makemore.errors import UserError
from makemore.play.lookahead import predict
from makemore.runs.run import Run
from makemore.runtime.untrusted import parse_json
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


class RequestError(Exception):
    """An HTTP error response."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Handlers:
    """Request handlers for a set of runs."""

    def __init__(self, runs: Mapping[str, Run], token: str) -> None:
        self.runs, self.token = runs, token

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
        run, text, params = self._run(query), _text(query), _params(query)
        at = query.get("at")
        if at is not None and (not isinstance(at, int) or isinstance(at, bool)):
            raise RequestError(422, "at: must be an integer")
        result = await run_in_threadpool(predict, run, text, params, at)
        return JSONResponse(result.as_dict(), headers=HEADERS)

    async def sample(self, request: Request) -> Response:
        """Stream samples that continue a text: lines, or one running text."""
        query = await self._read_query(request)
        run = self._run(query)
        text = _text(query)
        seed = _optional_number(query, "seed", int, 0, 2**63 - 1)
        sample_request = SampleRequest(
            n=_optional_number(query, "n", int, 1, MAX_SAMPLES) or 10,
            prompt=text.rpartition("\n")[2] if run.mode == "lines" else text,
            max_new_tokens=_optional_number(query, "max_new_tokens", int, 1, MAX_NEW_TOKENS),
            params=_params(query),
            seed=random_seed() if seed is None else seed,
            skip_unknown=True,
        )
        context_ids(run, sample_request)  # reject a bad prompt before the response starts
        pieces = _lines(run, sample_request) if run.mode == "lines" else stream_text(run, sample_request)
        return StreamingResponse(pieces, media_type="text/plain; charset=utf-8", headers=HEADERS)

    async def _read_query(self, request: Request) -> dict[str, Any]:
        """Check the token and parse the JSON body. Raises RequestError."""
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not secrets.compare_digest(token.encode(), self.token.encode()):
            raise RequestError(401, "wrong token; open the address that makemore play printed")
        body = b""
        try:
            async for piece in request.stream():
                body += piece
                if len(body) > MAX_BYTES:
                    raise RequestError(413, f"the request exceeds {MAX_BYTES:,} bytes")
            query = parse_json(body or b"{}")
        except ClientDisconnect:
            raise RequestError(400, "the request is incomplete") from None
        except ValueError as error:
            raise RequestError(400, f"the request can't be read as JSON: {error}") from None
        if not isinstance(query, dict):
            raise RequestError(400, "the request isn't a JSON object")
        return query

    def _run(self, query: dict[str, Any]) -> Run:
        run = self.runs.get(query["run"]) if isinstance(query.get("run"), str) else None
        if run is None:
            raise RequestError(404, "no such run")
        return run


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
        exception_handlers={RequestError: _error_response, UserError: _error_response},
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
    status = error.status if isinstance(error, RequestError) else 422
    return JSONResponse({"error": str(error)}, status_code=status, headers=HEADERS)


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


def _text(query: dict[str, Any]) -> str:
    text = query.get("text", "")
    if not isinstance(text, str):
        raise RequestError(422, "text: must be a string")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(422, "text: contains half a character") from None
    return normalize_newlines(text)


def _params(query: dict[str, Any]) -> SampleParams:
    temperature = _optional_number(query, "temperature", float, 0, 100)
    return SampleParams(
        1.0 if temperature is None else temperature,
        _optional_number(query, "top_k", int, 1, 2**31),
        _optional_number(query, "top_p", float, 0, 1),
        _optional_number(query, "min_p", float, 0, 1),
    )


def _optional_number(query: dict[str, Any], name: str, kind: type, low: float, high: float) -> Any:
    value = query.get(name)
    if value is None:
        return None
    fits = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not fits or not low <= value <= high:
        raise RequestError(
            422, f"{name}: give {'an integer' if kind is int else 'a number'} in [{low:g}, {high:g}]"
        )
    return value


def _lines(run: Run, request: SampleRequest) -> Iterator[str]:
    return (f"{line}\n" for line in sample(run, request))
