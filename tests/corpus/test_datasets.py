"""Where texts come from, against a server on this machine."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import threading

import pytest

from makemore.cli import run
from makemore.corpus import datasets
from makemore.corpus.datasets import BUNDLED, DATASETS, Dataset, bundled_file, download, resolve_input_file
from makemore.errors import UserError

TEXT = b"emma\nolivia\nava\n" * 5000


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves ``server.pages``; a path that isn't there is a 404, an odd one no HTTP at all."""

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/garbage":
            self.wfile.write(b"this is no HTTP\r\n\r\n")
            return
        body = self.server.pages.get(self.path)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + (100 if self.path == "/cut" else 0)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        server.pages = {"/good": TEXT, "/cut": TEXT[:-7], "/other": TEXT[::-1], "/long": TEXT * 3}
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def serve(server, monkeypatch):
    """Points the data set ``names`` at a page of the server."""

    def point(page: str) -> Dataset:
        port = server.server_address[1]
        entry = Dataset(
            f"http://127.0.0.1:{port}{page}", hashlib.sha256(TEXT).hexdigest(), len(TEXT), "a test"
        )
        monkeypatch.setitem(DATASETS, "names", entry)
        return entry

    return point


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MAKEMORE_DATA", raising=False)
    return tmp_path


class TestDownloading:
    def test_the_pinned_file(self, serve, work):
        serve("/good")
        path, fetched = download("names")
        assert fetched
        assert (work / path) == work / "data" / "names.txt"
        assert path.read_bytes() == TEXT
        assert [p.name for p in (work / "data").iterdir()] == ["names.txt"]

    def test_progress_ends_at_the_whole(self, serve, tmp_path):
        serve("/good")
        seen = []
        download("names", tmp_path, lambda done, total: seen.append((done, total)))
        assert seen[-1] == (len(TEXT), len(TEXT))
        assert seen == sorted(seen)

    def test_what_is_there_is_not_fetched(self, serve, server, tmp_path):
        serve("/good")
        (tmp_path / "names.txt").write_bytes(TEXT)
        assert download("names", tmp_path) == (tmp_path / "names.txt", False)
        assert server.asked == []

    @pytest.mark.parametrize("there", [b"my own list\n", b""])
    def test_another_file_is_not_replaced(self, serve, server, tmp_path, there):
        serve("/good")
        (tmp_path / "names.txt").write_bytes(there)
        with pytest.raises(UserError, match="is not the pinned file; move it away"):
            download("names", tmp_path)
        assert (tmp_path / "names.txt").read_bytes() == there
        assert server.asked == []

    def test_a_folder_in_its_place_is_not_replaced(self, serve, tmp_path):
        serve("/good")
        (tmp_path / "names.txt").mkdir()
        with pytest.raises(UserError, match="move it away"):
            download("names", tmp_path)

    @pytest.mark.parametrize("page", ["/other", "/cut", "/long"])
    def test_the_wrong_content_is_not_kept(self, serve, work, page):
        serve(page)
        with pytest.raises(UserError, match=r"not the pinned file|can't download"):
            download("names")
        assert list(work.iterdir()) == []

    def test_no_more_is_read_than_the_pinned_size(self, serve, work):
        entry = serve("/long")
        seen = []
        with pytest.raises(UserError, match="nothing was saved"):
            download("names", None, lambda done, total: seen.append(done))
        assert seen[-1] <= entry.size + 65536

    @pytest.mark.parametrize(("page", "reason"), [("/none", "Not Found"), ("/garbage", "this is no HTTP")])
    def test_a_server_that_has_it_not(self, serve, work, page, reason):
        serve(page)
        with pytest.raises(UserError, match=rf"(?s)can't download http.*{reason}.*; check the network"):
            download("names")
        assert list(work.iterdir()) == []

    def test_no_server(self, server, serve, work, monkeypatch):
        entry = serve("/good")
        dead = dataclasses.replace(entry, url="http://127.0.0.1:1/names.txt")
        monkeypatch.setitem(DATASETS, "names", dead)
        with pytest.raises(UserError, match="check the network"):
            download("names")
        assert list(work.iterdir()) == []

    def test_a_folder_that_cannot_be_made(self, serve, tmp_path):
        serve("/good")
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(UserError, match="can't write"):
            download("names", tmp_path / "file")

    def test_unknown_names(self):
        with pytest.raises(UserError, match="did you mean 'shakespeare'"):
            download("shakespear")

    def test_the_command_prints_the_path_alone(self, serve, work, capsys):
        serve("/good")
        assert run(["data", "names"]) == 0
        out, err = capsys.readouterr()
        assert out.split() == ["data/names.txt"]
        assert err.startswith("fetched")
        assert run(["data", "names"]) == 0
        assert capsys.readouterr().err.startswith("already downloaded")


class TestFinding:
    def test_nothing_is_the_shipped_list(self):
        assert resolve_input_file(None) == resolve_input_file(BUNDLED) == bundled_file()
        assert len(bundled_file().read_text(encoding="utf-8").splitlines()) > 1000

    def test_a_path_is_itself(self, work):
        (work / "my.txt").write_text("mine")
        assert resolve_input_file("my.txt").read_text() == "mine"
        (work / "plain").write_text("no suffix")
        assert resolve_input_file("plain").read_text() == "no suffix"

    def test_a_file_goes_before_a_data_set(self, work):
        (work / "names").write_text("mine")
        assert resolve_input_file("names").read_text() == "mine"

    def test_a_name_is_looked_up_in_data(self, work):
        (work / "data").mkdir()
        (work / "data" / "names.txt").write_text("here")
        assert resolve_input_file("names").read_text() == "here"

    def test_and_in_the_folder_of_the_environment_first(self, work, monkeypatch, tmp_path_factory):
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        (work / "data").mkdir()
        (work / "data" / "names.txt").write_text("here")
        monkeypatch.setenv("MAKEMORE_DATA", str(elsewhere))
        assert resolve_input_file("names").read_text() == "here"
        (elsewhere / "names.txt").write_text("there")
        assert resolve_input_file("names").read_text() == "there"

    def test_not_downloaded_says_how(self, work):
        with pytest.raises(UserError, match="get it with: makemore data names"):
            resolve_input_file("names")

    @pytest.mark.parametrize("name", ["name", "first-name", "shakespear"])
    def test_near_misses(self, work, name):
        with pytest.raises(UserError, match=r"no such file, and unknown data set .*did you mean"):
            resolve_input_file(name)

    @pytest.mark.parametrize("name", ["x.txt", "data/x", "x" * 5000 + ".txt"])
    def test_what_looks_like_a_path_is_one(self, work, name):
        assert str(resolve_input_file(name)) == name

    def test_a_broken_installation_says_so(self, monkeypatch, tmp_path):
        monkeypatch.setattr(datasets, "__file__", str(tmp_path / "makemore" / "corpus" / "datasets.py"))
        with pytest.raises(UserError, match="reinstall makemore"):
            bundled_file()
