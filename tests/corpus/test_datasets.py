"""Data sets and input files, against a local HTTP server."""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import http.server
import threading

import pytest

from makemore.cli import run
from makemore.corpus import datasets
from makemore.corpus.datasets import BUNDLED, DATASETS, Dataset, bundled_file, download, resolve_input_file
from makemore.errors import UserError

TEXT = b"emma\nolivia\nava\n" * 5000


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves ``server.pages``; 404 for other paths, an invalid response for /garbage."""

    def do_GET(self):
        self.server.requested.append(self.path)
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
        server.requested = []
        server.pages = {"/good": TEXT, "/cut": TEXT[:-7], "/other": TEXT[::-1], "/long": TEXT * 3}
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def serve(server, monkeypatch):
    """Return a function that points the data set ``names`` at a page of the server."""

    def point(page: str) -> Dataset:
        port = server.server_address[1]
        entry = Dataset(
            f"http://127.0.0.1:{port}{page}", hashlib.sha256(TEXT).hexdigest(), len(TEXT), "a test"
        )
        monkeypatch.setitem(DATASETS, "names", entry)
        return entry

    return point


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MAKEMORE_DATA", raising=False)
    return tmp_path


class TestDownload:
    def test_saves_the_pinned_file(self, serve, workdir):
        serve("/good")
        path, fetched = download("names")
        assert fetched
        assert (workdir / path) == workdir / "data" / "names.txt"
        assert path.read_bytes() == TEXT
        assert [p.name for p in (workdir / "data").iterdir()] == ["names.txt"]

    def test_existing_file_is_not_downloaded_again(self, serve, server, tmp_path):
        serve("/good")
        (tmp_path / "names.txt").write_bytes(TEXT)
        assert download("names", tmp_path) == (tmp_path / "names.txt", False)
        assert server.requested == []

    @pytest.mark.parametrize("content", [b"my own list\n", b""])
    def test_different_file_is_not_overwritten(self, serve, server, tmp_path, content):
        serve("/good")
        (tmp_path / "names.txt").write_bytes(content)
        with pytest.raises(UserError, match="is not the pinned file; move it away"):
            download("names", tmp_path)
        assert (tmp_path / "names.txt").read_bytes() == content
        assert server.requested == []

    def test_directory_is_not_overwritten(self, serve, tmp_path):
        serve("/good")
        (tmp_path / "names.txt").mkdir()
        with pytest.raises(UserError, match="move it away"):
            download("names", tmp_path)

    @pytest.mark.parametrize("page", ["/other", "/cut", "/long"])
    def test_wrong_content_is_not_saved(self, serve, workdir, page):
        serve(page)
        with pytest.raises(UserError, match=r"not the pinned file|can't download"):
            download("names")
        assert list(workdir.iterdir()) == []

    def test_reads_at_most_the_pinned_size(self, serve, workdir, monkeypatch):
        entry, read, sizes = serve("/long"), http.client.HTTPResponse.read, []

        def count(response, *arguments):
            sizes.append(len(data := read(response, *arguments)))
            return data

        monkeypatch.setattr(http.client.HTTPResponse, "read", count)
        with pytest.raises(UserError, match="nothing was saved"):
            download("names")
        assert sum(sizes) <= entry.size + 65536

    @pytest.mark.parametrize(("page", "reason"), [("/none", "Not Found"), ("/garbage", "this is no HTTP")])
    def test_server_error_is_reported(self, serve, workdir, page, reason):
        serve(page)
        with pytest.raises(UserError, match=rf"(?s)can't download http.*{reason}.*; check the network"):
            download("names")
        assert list(workdir.iterdir()) == []

    def test_unreachable_server(self, server, serve, workdir, monkeypatch):
        entry = serve("/good")
        unreachable = dataclasses.replace(entry, url="http://127.0.0.1:1/names.txt")
        monkeypatch.setitem(DATASETS, "names", unreachable)
        with pytest.raises(UserError, match="check the network"):
            download("names")
        assert list(workdir.iterdir()) == []

    def test_folder_that_cannot_be_created(self, serve, tmp_path):
        serve("/good")
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(UserError, match="can't write"):
            download("names", tmp_path / "file")

    def test_unknown_name_suggests_the_nearest(self):
        with pytest.raises(UserError, match="did you mean 'shakespeare'"):
            download("shakespear")

    def test_command_prints_only_the_path(self, serve, workdir, capsys):
        serve("/good")
        assert run(["data", "names"]) == 0
        out, err = capsys.readouterr()
        assert out.split() == ["data/names.txt"]
        assert err.startswith("fetched")
        assert run(["data", "names"]) == 0
        assert capsys.readouterr().err.startswith("already downloaded")


class TestResolveInputFile:
    def test_default_is_the_bundled_list(self):
        assert resolve_input_file(None) == resolve_input_file(BUNDLED) == bundled_file()
        assert len(bundled_file().read_text(encoding="utf-8").splitlines()) > 1000

    def test_path_resolves_to_itself(self, workdir):
        (workdir / "my.txt").write_text("mine")
        assert resolve_input_file("my.txt").read_text() == "mine"
        (workdir / "plain").write_text("no suffix")
        assert resolve_input_file("plain").read_text() == "no suffix"

    def test_file_takes_precedence_over_a_data_set(self, workdir):
        (workdir / "names").write_text("mine")
        assert resolve_input_file("names").read_text() == "mine"

    def test_data_set_is_looked_up_in_data(self, workdir):
        (workdir / "data").mkdir()
        (workdir / "data" / "names.txt").write_text("here")
        assert resolve_input_file("names").read_text() == "here"

    def test_makemore_data_folder_takes_precedence(self, workdir, monkeypatch, tmp_path_factory):
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        (workdir / "data").mkdir()
        (workdir / "data" / "names.txt").write_text("here")
        monkeypatch.setenv("MAKEMORE_DATA", str(elsewhere))
        assert resolve_input_file("names").read_text() == "here"
        (elsewhere / "names.txt").write_text("there")
        assert resolve_input_file("names").read_text() == "there"

    def test_missing_data_set_says_how_to_download_it(self, workdir):
        with pytest.raises(UserError, match="get it with: makemore data names"):
            resolve_input_file("names")

    @pytest.mark.parametrize("name", ["name", "first-name", "shakespear"])
    def test_misspelled_data_set_suggests_the_nearest(self, workdir, name):
        with pytest.raises(UserError, match=r"no such file, and unknown data set .*did you mean"):
            resolve_input_file(name)

    @pytest.mark.parametrize("name", ["x.txt", "data/x", "x" * 5000 + ".txt"])
    def test_path_like_names_are_paths(self, workdir, name):
        assert str(resolve_input_file(name)) == name

    def test_missing_bundled_file_asks_to_reinstall(self, monkeypatch, tmp_path):
        monkeypatch.setattr(datasets, "__file__", str(tmp_path / "makemore" / "corpus" / "datasets.py"))
        with pytest.raises(UserError, match="reinstall makemore"):
            bundled_file()
