"""Killed at any moment, a run resumes from a complete state and ends as if nothing had been.

``benchmarks/kill.py`` does the same some hundreds of times.
"""

from __future__ import annotations

import os

import pytest

from tests.reliability.fork_server import Nursery
from tests.reliability.kills import kill_everywhere

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")


def test_twenty_kills(tmp_path):
    with Nursery() as nursery:
        *_, done = kill_everywhere(nursery, tmp_path, 20)
    assert done["at a call"] == 10
    assert done["at a moment"] >= 10
