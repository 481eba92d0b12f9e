"""The web server of ``makemore play``: a page, and the few questions it asks.

Only programs on this machine reach it (127.0.0.1), and only those that were told the token: it is in the
page's address behind ``#``, which browsers neither send nor log, and goes with each question as a header.
"""

from __future__ import annotations

import json
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
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from makemore.errors import UserError
from makemore.play.lookahead import look
from makemore.runs.run import Run
from makemore.sampling import SampleParams
from makemore.sampling.text import SampleRequest, context, random_seed, sample, stream_text

HOST = "127.0.0.1"
PAGE = Path(__file__).with_name("page")
FILES = {"/": "index.html", "/play.css": "play.css", "/play.js": "play.js"}
MOST_BYTES = 1_000_000
"""Of a question."""
MOST_SAMPLES, MOST_NEW_TOKENS = 100, 5000
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Refusal(Exception):  # noqa: N818 - an answer, not a failure
    """What is answered instead."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Answers:
    """What the page may ask of some runs."""

    def __init__(self, runs: Mapping[str, Run], token: str) -> None:
        self.runs, self.token = runs, token

    async def page(self, request: Request) -> Response:
        """The page's own files; there is nothing secret in them."""
        return FileResponse(PAGE / FILES[request.url.path], headers=HEADERS)

    async def about(self, request: Request) -> Response:
        """The runs that there are."""
        await self._asked(request)
        found = [_about(name, run) for name, run in self.runs.items()]
        return JSONResponse({"runs": found}, headers=HEADERS)

    async def look(self, request: Request) -> Response:
        """A text as a run sees it."""
        asked = await self._asked(request)
        run, text, params = self._run(asked), _text(asked), _params(asked)
        at = asked.get("at")
        if at is not None and (not isinstance(at, int) or isinstance(at, bool)):
            raise Refusal(422, "at: a whole number")
        seen = await run_in_threadpool(look, run, text, params, at)
        return JSONResponse(seen.as_dict(), headers=HEADERS)

    async def sample(self, request: Request) -> Response:
        """Samples that go on from a text, as they are made: lines, or one running text."""
        asked = await self._asked(request)
        run = self._run(asked)
        text = _text(asked)
        seed = _number(asked, "seed", int, 0, 2**63 - 1)
        wanted = SampleRequest(
            _number(asked, "n", int, 1, MOST_SAMPLES) or 10,
            text.rpartition("\n")[2] if run.mode == "lines" else text,
            _number(asked, "max_new_tokens", int, 1, MOST_NEW_TOKENS),
            _params(asked),
            seed=random_seed() if seed is None else seed,
            skip_unknown=True,
        )
        context(run, wanted)  # refuses a prompt now rather than in mid-answer
        pieces = _lines(run, wanted) if run.mode == "lines" else stream_text(run, wanted)
        return StreamingResponse(pieces, media_type="text/plain; charset=utf-8", headers=HEADERS)

    async def _asked(self, request: Request) -> dict[str, Any]:
        """The question, from one who knows the token. Raises Refusal."""
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not secrets.compare_digest(given.encode(), self.token.encode()):
            raise Refusal(401, "open the address that makemore play printed; it carries the token")
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > MOST_BYTES:
                raise Refusal(413, f"at most {MOST_BYTES:,} bytes")
        try:
            asked = json.loads(body or b"{}")
        except ValueError:
            raise Refusal(400, "not JSON") from None
        if not isinstance(asked, dict):
            raise Refusal(400, "not a JSON object")
        return asked

    def _run(self, asked: dict[str, Any]) -> Run:
        run = self.runs.get(asked["run"]) if isinstance(asked.get("run"), str) else None
        if run is None:
            raise Refusal(404, "no such run")
        return run


def make_app(runs: Mapping[str, Run], token: str) -> Starlette:
    """The application: the page at ``/`` and its questions below ``/api``."""
    answers = Answers(runs, token)
    routes = [Route(path, answers.page) for path in FILES]
    routes += [Route("/api/runs", answers.about)]
    routes += [Route("/api/look", answers.look, methods=["POST"])]
    routes += [Route("/api/sample", answers.sample, methods=["POST"])]
    return Starlette(
        routes=routes,
        # A page elsewhere that has made a name of its own point here gets no answer.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
        exception_handlers={Refusal: _refused, UserError: _refused},
    )


def listen(port: int) -> socket.socket:
    """A socket on this machine alone; port 0 takes a free one. Raises UserError where it is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":
            # What is called SO_REUSEADDR there lets two processes have one port.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else "no such port"
        raise UserError(f"--port {port}: {reason}; 0 takes a free one") from None
    return listener


def serve(app: Starlette, listener: socket.socket) -> None:
    """Answer until a signal comes; KeyboardInterrupt then, as uvicorn has it."""
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, ws="none")
    uvicorn.Server(config).run(sockets=[listener])


async def _refused(request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, Refusal) else 422
    return JSONResponse({"error": str(error)}, status_code=status, headers=HEADERS)


def _about(name: str, run: Run) -> dict[str, Any]:
    return {
        "name": name,
        "model": run.config["model"]["name"],
        "parameters": run.model.n_parameters(),
        "mode": run.mode,
        "tokenizer": run.config["tokenizer"],
        "vocab_size": run.tokenizer.vocab_size,
        "text": run.config["corpus"]["name"],
    }


def _text(asked: dict[str, Any]) -> str:
    text = asked.get("text", "")
    if not isinstance(text, str):
        raise Refusal(422, "text: a string")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refusal(422, "text: half a character") from None
    return text.replace("\r\n", "\n")


def _params(asked: dict[str, Any]) -> SampleParams:
    temperature = _number(asked, "temperature", float, 0, 100)
    return SampleParams(
        1.0 if temperature is None else temperature,
        _number(asked, "top_k", int, 1, 2**31),
        _number(asked, "top_p", float, 0, 1),
        _number(asked, "min_p", float, 0, 1),
    )


def _number(asked: dict[str, Any], name: str, kind: type, least: float, most: float) -> Any:
    """None where it isn't given. Raises Refusal where it is no number of these."""
    value = asked.get(name)
    if value is None:
        return None
    fits = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not fits or not least <= value <= most:
        raise Refusal(422, f"{name}: {'a whole' if kind is int else 'a'} number from {least:g} to {most:g}")
    return value


def _lines(run: Run, request: SampleRequest) -> Iterator[str]:
    return (f"{line}\n" for line in sample(run, request))
