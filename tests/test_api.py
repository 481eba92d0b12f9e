"""``import makemore`` and the examples in docs/api.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import makemore
from makemore.training.request import TrainRequest
from makemore.training.train import train

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api.md"


def test_import_does_not_load_torch():
    code = "import sys, makemore; print(makemore.__version__, 'torch' in sys.modules, 'numpy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == [makemore.__version__, "False", "False"]


def test_unknown_attribute_raises():
    with pytest.raises(AttributeError, match="'makemore' has no attribute 'lode'"):
        _ = makemore.lode  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:.*is worse than count")
def test_every_documented_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("poems.txt").write_text("The rose is red, the violet's blue,\nand so on, as the others do.\n" * 40)
    train(TrainRequest(input="poems.txt", model="count", out=Path("checkpoints/poems-transformer")))
    Path("names.txt").write_text("anna\nhanna\nmaria\nmarianna\nria\n" * 20)
    train(TrainRequest(input="names.txt", model="count", out=Path("checkpoints/names-lstm")))
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out


def test_a_script_without_a_main_guard_is_told_so(tmp_path: Path) -> None:
    """New processes import the script, which would start processes again."""
    (tmp_path / "names.txt").write_text("anna\nbob\ncara\n" * 30, encoding="utf-8")
    script = tmp_path / "script.py"
    script.write_text('import makemore\nmakemore.compare("names.txt", models="count", out="out")\n', "utf-8")
    environment = {**os.environ, "PYTHONPATH": str(PAGE.parents[1])}
    result = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert 'put the call of makemore.compare under: if __name__ == "__main__":' in result.stderr
    assert "bootstrapping" not in result.stderr
