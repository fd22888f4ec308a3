"""The site of the documentation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ssv2rt

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_site_is_made_without_warnings_and_has_all_public_names(tmp_path: Path) -> None:
    for package in ("sphinx", "myst_parser", "furo", "sphinx_click"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "-q", "-E", ROOT / "docs", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "api.html").read_text()
    assert all(f'id="ssv2rt.{name}"' in page for name in ssv2rt.__all__ if name != "__version__")
    assert 'id="cmdoption-ssv2rt-score-out"' in (tmp_path / "commands.html").read_text()
