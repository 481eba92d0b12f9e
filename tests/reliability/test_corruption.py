"""Damage to a run's files is noticed by name and mended by resuming.

``benchmarks/rot.py`` does the same some hundreds of times.
"""

from __future__ import annotations

import json

import pytest

from makemore.errors import UserError
from makemore.runs.directory import RunDir
from makemore.runs.verification import check_run
from tests.cli.conftest import call
from tests.reliability.corruption import make_runs, rot


def test_thirty_damages(tmp_path):
    *_, done = rot(tmp_path, 30)
    assert done.total() == 30


def test_the_command(tmp_path):
    folder = make_runs(tmp_path)["finished"]
    assert call("check", folder) == (0, f"{folder}: all files are intact\n", "")
    (folder / "samples.txt").write_text("other\n")
    (folder / "tokenizer.json").unlink()
    result = call("check", folder, "--json")
    assert result.status == 2
    assert len(json.loads(result.out)["problems"]) == 2
    result = call("check", folder)
    assert (result.status, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert "samples.txt is damaged" in result.err
    assert "tokenizer.json is missing" in result.err


def test_no_run(tmp_path):
    with pytest.raises(UserError, match="no run at"):
        check_run(tmp_path)


def test_a_run_without_its_states_is_whole(tmp_path):
    """Whoever shares a run need not share what resuming needs."""
    folder = make_runs(tmp_path)["finished"]
    RunDir(folder).drop_states()
    assert check_run(folder) == []
