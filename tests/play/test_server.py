"""The play server's responses and access control."""

from __future__ import annotations

import dataclasses
import http.client
import json
import socket
from typing import Any

import pytest

from makemore.errors import UserError
from makemore.evaluation.evaluate import adapted_run, adaptive_reader
from makemore.play.lookahead import predict
from makemore.play.server import MAX_BYTES, listen
from makemore.runs.run import load
from makemore.sampling import SampleParams
from makemore.sampling.text import SampleRequest, sample, stream_text
from tests.play.conftest import PlayServer


class Response:
    def __init__(self, server: PlayServer, method: str, path: str, body: bytes = b"", **headers: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        self.status, self.headers = response.status, response.headers
        self.body = response.read().decode()
        connection.close()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def call(server: PlayServer, path: str, payload: Any = None) -> Response:
    method = "GET" if payload is None else "POST"
    authorization = {"Authorization": f"Bearer {server.token}"}
    return Response(
        server, method, path, b"" if payload is None else json.dumps(payload).encode(), **authorization
    )


def test_page_loads_nothing_from_other_hosts(server: PlayServer) -> None:
    for path in ("/", "/play.js", "/play.css"):
        response = Response(server, "GET", path)
        assert response.status == 200
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert response.headers["Cache-Control"] == "no-store"
        without_names = response.body.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in without_names
        assert "https://" not in without_names
        assert "//" not in without_names.replace("'//'", "")
        assert server.token not in response.body
    assert Response(server, "GET", "/../server.py").status == 404


@pytest.mark.parametrize("header", ["", "Bearer ", "Bearer wrong", "Bearer é"])
@pytest.mark.parametrize("path", ["/api/runs", "/api/predict", "/api/sample"])
def test_requests_without_the_token_are_refused(server: PlayServer, path: str, header: str) -> None:
    method = "GET" if path == "/api/runs" else "POST"
    response = Response(
        server, method, path, b'{"run": "lines"}', Authorization=header.encode().decode("latin-1")
    )
    assert response.status == 401
    assert list(response.json) == ["error"]


def test_unknown_host_names_are_refused(server: PlayServer) -> None:
    bearer = f"Bearer {server.token}"
    assert Response(server, "GET", "/api/runs", Host="evil.example", Authorization=bearer).status == 400
    local = f"localhost:{server.port}"
    assert Response(server, "GET", "/api/runs", Host=local, Authorization=bearer).status == 200


def test_server_listens_on_localhost_only() -> None:
    with listen(0) as listener:
        host, port = listener.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(UserError, match=rf"--port {port}: .*; use 0 for a free port"):
            listen(port)
        assert listener.family == socket.AF_INET


def test_runs_are_listed(server: PlayServer) -> None:
    first, second, _ = call(server, "/api/runs").json["runs"]
    assert (first["name"], first["model"], first["mode"]) == ("lines", "mlp", "lines")
    assert (second["name"], second["model"], second["text"]) == ("text", "count", "prose")


@pytest.mark.parametrize(("name", "text"), [("lines", "bad"), ("text", "the end"), ("text", "")])
def test_look_matches_predict(server: PlayServer, name: str, text: str) -> None:
    run = load(server.folder / name)
    payload = {"run": name, "text": text, "temperature": 0.5, "top_k": 3, "at": 2}
    expected = dataclasses.asdict(predict(run, text, SampleParams(0.5, 3), 2))
    assert call(server, "/api/predict", payload).json == json.loads(json.dumps(expected))


def test_adaptive_requests_learn_from_the_text(server: PlayServer) -> None:
    run, text = load(server.folder / "text"), "saltsaltsalt"
    expected = dataclasses.asdict(predict(run, text, reader=adaptive_reader(run)))
    payload = {"run": "text", "text": text, "adaptive": True}
    assert call(server, "/api/predict", payload).json == json.loads(json.dumps(expected))
    request = SampleRequest(n=1, prompt=text, max_new_tokens=60, seed=9)
    response = call(server, "/api/sample", {**payload, "seed": 9, "max_new_tokens": 60})
    assert response.body == "".join(stream_text(adapted_run(run, request), request))
    assert response.body != "".join(stream_text(run, request))


def test_samples_match_the_seed(server: PlayServer) -> None:
    run = load(server.folder / "lines")
    payload = {"run": "lines", "text": "ba", "n": 5, "seed": 3, "top_p": 0.9}
    expected = list(sample(run, SampleRequest(n=5, prompt="ba", params=SampleParams(top_p=0.9), seed=3)))
    response = call(server, "/api/sample", payload)
    assert response.headers["Content-Type"].startswith("text/plain")
    assert response.body.splitlines() == expected
    text = load(server.folder / "text")
    request = SampleRequest(n=1, prompt="ba", max_new_tokens=60, seed=9)
    response = call(server, "/api/sample", {"run": "text", "text": "ba", "seed": 9, "max_new_tokens": 60})
    assert response.body == "".join(stream_text(text, request))


@pytest.mark.parametrize(
    ("payload", "status"),
    [
        ({}, 404),
        ({"run": "../lines"}, 404),
        ({"run": ["lines"]}, 404),
        ([], 400),
        ({"run": "lines", "text": 5}, 422),
        ({"run": "lines", "text": "\ud800"}, 400),
        ({"run": "lines", "temperature": "hot"}, 422),
        ({"run": "lines", "temperature": -1}, 422),
        ({"run": "lines", "top_k": 0}, 422),
        ({"run": "lines", "top_k": True}, 422),
        ({"run": "lines", "top_p": 0}, 422),
        ({"run": "lines", "min_p": 1.5}, 422),
    ],
)
@pytest.mark.parametrize("path", ["/api/predict", "/api/sample"])
def test_invalid_requests_get_an_error_message(
    server: PlayServer, path: str, payload: Any, status: int
) -> None:
    response = call(server, path, payload)
    assert response.status == status
    assert response.json["error"]


def test_other_invalid_requests_are_refused(server: PlayServer) -> None:
    assert call(server, "/api/predict", {"run": "lines", "at": "end"}).status == 422
    assert call(server, "/api/sample", {"run": "lines", "n": 1000}).status == 422
    assert call(server, "/api/predict", {"run": "lines", "text": "a" * MAX_BYTES}).status == 413
    authorization = {"Authorization": f"Bearer {server.token}"}
    for body in (b"{", b"\xff", b"[" * 100_000, b'{"run":' * 50_000, b"1" * 5000):
        response = Response(server, "POST", "/api/predict", body, **authorization)
        assert response.status == 400
        assert response.json["error"].isprintable()
    assert Response(server, "GET", "/api/predict", **authorization).status == 405
    assert Response(server, "GET", "/nowhere", **authorization).status == 404
