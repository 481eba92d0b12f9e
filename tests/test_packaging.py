"""Contents of the wheel, and command-line help without torch."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from makemore.corpus.datasets import bundled_file

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


def run_python(code: str, cwd: Path, import_path: Path | None = None) -> str:
    environment = {**os.environ, "PYTHONPATH": str(import_path or "")}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_wheel_includes_the_bundled_names(tmp_path):
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    assert {p.suffix for p in (tmp_path / "site" / "makemore" / "report").iterdir()} >= {".css", ".js"}
    code = "import makemore, makemore.corpus.datasets as d; print(makemore.__file__); print(d.bundled_file())"
    package, names = run_python(code, tmp_path, tmp_path / "site").splitlines()
    assert str(tmp_path / "site") in package
    assert str(tmp_path / "site") in names
    assert Path(names).read_bytes() == bundled_file().read_bytes()


def test_bundled_names_are_unique_lowercase_ascii():
    names = bundled_file().read_text(encoding="utf-8").splitlines()
    assert len(names) == len(set(names)) >= 5000
    assert all(name.isascii() and name.isalpha() and name.islower() for name in names)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["sample", "--help"],
        ["compare", "-h"],
        ["--version"],
        ["trian"],
        ["data"],
    ],
    ids=" ".join,
)
def test_help_and_errors_do_not_import_torch(arguments, tmp_path):
    code = f"import sys; from makemore.cli import run; run({arguments}); print('torch' in sys.modules)"
    assert run_python(code, tmp_path, ROOT).splitlines()[-1] == "False"


def test_train_py_and_sample_py_run_the_cli(tmp_path):
    for script in ("train.py", "sample.py"):
        result = subprocess.run(
            [sys.executable, str(ROOT / script), "--help"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"makemore {script.removesuffix('.py')}" in result.stdout
