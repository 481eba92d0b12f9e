"""What the server answers, and to whom."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

import pytest

from makemore.errors import UserError
from makemore.play.lookahead import predict
from makemore.play.server import MAX_BYTES, listen
from makemore.runs.run import load
from makemore.sampling import SampleParams
from makemore.sampling.text import SampleRequest, sample, stream_text
from tests.play.conftest import Served


class Answer:
    def __init__(self, served: Served, method: str, path: str, body: bytes = b"", **headers: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        self.status, self.headers = response.status, response.headers
        self.body = response.read().decode()
        connection.close()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(served: Served, path: str, question: Any = None) -> Answer:
    method = "GET" if question is None else "POST"
    authorization = {"Authorization": f"Bearer {served.token}"}
    return Answer(
        served, method, path, b"" if question is None else json.dumps(question).encode(), **authorization
    )


def test_the_page_asks_nothing_of_other_machines(served: Served) -> None:
    for path in ("/", "/play.js", "/play.css"):
        answer = Answer(served, "GET", path)
        assert answer.status == 200
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cache-Control"] == "no-store"
        without_names = answer.body.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in without_names
        assert "https://" not in without_names
        assert "//" not in without_names.replace("'//'", "")
        assert served.token not in answer.body
    assert Answer(served, "GET", "/../server.py").status == 404


@pytest.mark.parametrize("given", ["", "Bearer ", "Bearer wrong", "Bearer é"])
@pytest.mark.parametrize("path", ["/api/runs", "/api/look", "/api/sample"])
def test_without_the_token_nothing_is_answered(served: Served, path: str, given: str) -> None:
    method = "GET" if path == "/api/runs" else "POST"
    answer = Answer(served, method, path, b'{"run": "lines"}', Authorization=given.encode().decode("latin-1"))
    assert answer.status == 401
    assert list(answer.json) == ["error"]


def test_another_name_for_this_machine_is_refused(served: Served) -> None:
    authorization = f"Bearer {served.token}"
    assert Answer(served, "GET", "/api/runs", Host="evil.example", Authorization=authorization).status == 400
    local = f"localhost:{served.port}"
    assert Answer(served, "GET", "/api/runs", Host=local, Authorization=authorization).status == 200


def test_it_listens_on_this_machine_alone() -> None:
    with listen(0) as listener:
        host, port = listener.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(UserError, match=rf"--port {port}: .*; use 0 for a free port"):
            listen(port)
        assert listener.family == socket.AF_INET


def test_the_runs(served: Served) -> None:
    first, second, _ = ask(served, "/api/runs").json["runs"]
    assert (first["name"], first["model"], first["mode"]) == ("lines", "mlp", "lines")
    assert (second["name"], second["model"], second["text"]) == ("text", "count", "prose")


@pytest.mark.parametrize(("name", "text"), [("lines", "bad"), ("text", "the end"), ("text", "")])
def test_a_look_is_the_workflows(served: Served, name: str, text: str) -> None:
    run = load(served.folder / name)
    question = {"run": name, "text": text, "temperature": 0.5, "top_k": 3, "at": 2}
    expected = predict(run, text, SampleParams(0.5, 3), 2).as_dict()
    assert ask(served, "/api/look", question).json == json.loads(json.dumps(expected))


def test_samples_are_those_of_the_seed(served: Served) -> None:
    run = load(served.folder / "lines")
    question = {"run": "lines", "text": "ba", "n": 5, "seed": 3, "top_p": 0.9}
    expected = list(sample(run, SampleRequest(5, "ba", params=SampleParams(top_p=0.9), seed=3)))
    answer = ask(served, "/api/sample", question)
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert answer.body.splitlines() == expected
    text = load(served.folder / "text")
    request = SampleRequest(1, "ba", 60, seed=9)
    answer = ask(served, "/api/sample", {"run": "text", "text": "ba", "seed": 9, "max_new_tokens": 60})
    assert answer.body == "".join(stream_text(text, request))


@pytest.mark.parametrize(
    ("question", "status"),
    [
        ({}, 404),
        ({"run": "../lines"}, 404),
        ({"run": ["lines"]}, 404),
        ([], 400),
        ({"run": "lines", "text": 5}, 422),
        ({"run": "lines", "text": "\ud800"}, 422),
        ({"run": "lines", "temperature": "hot"}, 422),
        ({"run": "lines", "temperature": -1}, 422),
        ({"run": "lines", "top_k": 0}, 422),
        ({"run": "lines", "top_k": True}, 422),
        ({"run": "lines", "top_p": 0}, 422),
        ({"run": "lines", "min_p": 1.5}, 422),
    ],
)
@pytest.mark.parametrize("path", ["/api/look", "/api/sample"])
def test_senseless_questions_are_refused_in_words(
    served: Served, path: str, question: Any, status: int
) -> None:
    answer = ask(served, path, question)
    assert answer.status == status
    assert answer.json["error"]


def test_more_refusals(served: Served) -> None:
    assert ask(served, "/api/look", {"run": "lines", "at": "end"}).status == 422
    assert ask(served, "/api/sample", {"run": "lines", "n": 1000}).status == 422
    assert ask(served, "/api/look", {"run": "lines", "text": "a" * MAX_BYTES}).status == 413
    authorization = {"Authorization": f"Bearer {served.token}"}
    assert Answer(served, "POST", "/api/look", b"{", **authorization).status == 400
    assert Answer(served, "GET", "/api/look", **authorization).status == 405
    assert Answer(served, "GET", "/nowhere", **authorization).status == 404
