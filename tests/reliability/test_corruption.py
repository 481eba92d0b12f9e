"""Damage to a run's files is reported by file name and repaired by resuming.

``benchmarks/corruption.py`` does the same hundreds of times.
"""

from __future__ import annotations

import json

import pytest

from makemore.errors import UserError
from makemore.runs.directory import RunDir
from makemore.runs.verification import check_run
from tests.cli.conftest import call
from tests.reliability.corruption import damage_and_resume, make_runs

pytestmark = pytest.mark.slow


def test_thirty_damaged_runs_are_reported_and_resumed(tmp_path):
    *_, counts = damage_and_resume(tmp_path, 30)
    assert counts.total() == 30


def test_check_names_the_damaged_files(tmp_path):
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


def test_missing_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run at"):
        check_run(tmp_path)


def test_run_without_states_is_intact(tmp_path):
    """A run may be shared without the states, which only resuming needs."""
    folder = make_runs(tmp_path)["finished"]
    RunDir(folder).states.drop()
    assert check_run(folder) == []
