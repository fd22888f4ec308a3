"""The marker `gpu`: skipped without a GPU, and a failure where one is required."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NAME = "test_gpu_normalization_outputs_the_autocast_dtype"


@pytest.mark.parametrize(("required", "code", "outcome"), [("", 0, "3 skipped"), ("1", 1, "3 errors")])
def test_a_required_gpu_that_is_not_there_is_a_failure(required: str, code: int, outcome: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=", "-k", NAME]
    done = subprocess.run(
        [*command, "tests/models/test_resnets.py"],
        cwd=Path(__file__).resolve().parents[1],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "SSV2RT_REQUIRE_GPU": required},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code and outcome in done.stdout, done.stdout + done.stderr
    assert ("SSV2RT_REQUIRE_GPU=1, and there is no GPU" in done.stdout) == bool(required)
