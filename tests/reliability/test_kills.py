"""A run killed at any moment resumes from a complete state and ends with the same result.

``benchmarks/kill.py`` does the same hundreds of times.
"""

from __future__ import annotations

import os

import pytest

from tests.reliability.fork_server import ForkServer
from tests.reliability.kills import kill_everywhere

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]


def test_runs_killed_twenty_times_end_the_same(tmp_path):
    with ForkServer() as server:
        *_, counts = kill_everywhere(server, tmp_path, 20)
    assert counts["at a call"] == 10
    assert counts["at a moment"] >= 10
