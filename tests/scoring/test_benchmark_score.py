"""`benchmark score`, with an engine and on machines for which none can be built."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ssv2rt.benchmark import score
from ssv2rt.benchmark.in_pytorch import random_network, runner_of
from ssv2rt.core.recipes import Clip, Model

CLIP, MODEL = Clip(frames=4, size=32), Model(width=4)


@pytest.mark.parametrize(
    ("choose", "engine"),
    [(score._choose_engine, "openvino, int8"), (lambda device: None, "pytorch, bf16")],
    ids=["engine", "none"],
)
def test_stages_are_measured(
    choose: Callable[[torch.device], Any], engine: str, tiny_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "_choose_engine", choose)
    monkeypatch.setattr(score, "choose_device", lambda: torch.device("cpu"))
    videos = sorted((tiny_set / "videos").iterdir())[:8]
    found = score.benchmark_score(MODEL, CLIP, videos, count=8, rounds=2, names=0)
    assert found["engine"] == engine and found["start"] is None
    rates = {name: rate["median"] for name, rate in found["videos_per_second"].items()}
    assert set(rates) == {score.ALL, score.DECODE, score.ENGINE, score.PLAIN, score.PLAIN_LAYOUT}
    assert min(rates.values()) > 0 and found["slowest_stage"] in (score.DECODE, score.ENGINE)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_pytorch_stand_in_for_an_engine_matches_the_network(device: str) -> None:
    where = torch.device(device, 0) if device == "cuda" else torch.device(device)
    generator = torch.Generator().manual_seed(1)
    clips = torch.randint(0, 256, (3, 4, 32, 32, 3), dtype=torch.uint8, generator=generator)
    with torch.inference_mode():
        expected = random_network(MODEL)(clips)
    found = runner_of(random_network(MODEL), where)(clips.to(where))
    assert found.device.type == "cpu" and found.dtype == torch.float32
    assert ((found - expected).norm() / expected.norm()).item() < 0.05


class Ready:
    """A backend that is available."""

    unavailable_reason = cannot_build_reason = staticmethod(str)


@pytest.mark.parametrize(
    ("int8", "fp16", "chosen"),
    [
        ("tensorrt", "tensorrt", ("tensorrt", "int8")),
        ("openvino", "aotinductor", ("aotinductor", "fp16")),
        ("openvino", "openvino", None),
    ],
)
def test_on_a_gpu_only_gpu_engines_are_chosen(
    int8: str, fp16: str, chosen: tuple[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "choose_backend", {"int8": int8, "fp16": fp16}.__getitem__)
    monkeypatch.setattr(score, "backend", lambda name: Ready)
    assert score._choose_engine(torch.device("cuda")) == chosen
