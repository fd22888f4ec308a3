"""Broken videos, from the decoder to the engine's logits, on a CPU and on a GPU with NVDEC."""

from pathlib import Path

import pytest
import torch

from ssv2rt.benchmark.in_pytorch import bundle_without_engine, random_network, runner_of
from ssv2rt.core.recipe_files import load_engine_recipe
from ssv2rt.core.recipes import Data
from ssv2rt.core.run_folders import Run
from ssv2rt.dataset.index import open_manifest
from ssv2rt.engines.backends.registry import choose_backend
from ssv2rt.engines.build import build_engine
from ssv2rt.scoring.predictor import Predictor
from ssv2rt.scoring.row import Row
from ssv2rt.scoring.scorer import Scorer
from ssv2rt.scoring.video_sources import Video
from tests.conftest import numbered_video

pytestmark = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


@pytest.fixture
def predictor(device: str, tiny_run: Run, tiny_set: Path) -> Predictor:
    """An engine for the device, by the default backend; PyTorch if none can be built for the GPU."""
    where, name = torch.device("cuda", 0) if device == "cuda" else None, choose_backend()
    if where and name == "openvino":
        recipe = tiny_run.recipe()
        bundle = bundle_without_engine(recipe.model, recipe.clip, 8, where)
        return Predictor(bundle, top_k=3, device=where, runner=runner_of(random_network(recipe.model), where))
    made, failures = build_engine(
        tiny_run,
        load_engine_recipe("fp16", ("gate.clips=10",)),
        name if where else "openvino",
        open_manifest(tiny_set),
    )
    assert not failures and made.info.target.startswith("sm") == (device == "cuda")
    return Predictor(made, top_k=3, device=where)


def score(scorer: Scorer, videos: list[Path]) -> dict[str, Row]:
    tasks = [(number, Video(str(path), path)) for number, path in enumerate(videos)]
    batches = [tasks[at : at + scorer.videos] for at in range(0, len(tasks), scorer.videos)]
    return {Path(str(row["video"])).name: row for batch in scorer.score(batches) for _, row in batch}


def test_broken_videos_get_error_rows_and_change_no_others(tiny_run: Run, predictor: Predictor, tmp_path: Path) -> None:
    good = [numbered_video(tmp_path / f"{n}.webm", "libvpx-vp9", frames=9 + n, width=427, height=240) for n in range(6)]
    good.append(numbered_video(tmp_path / "h264.mp4", "libx264", frames=20, width=320, height=180))
    good.append(numbered_video(tmp_path / "small.webm", "libvpx-vp9", frames=9))  # smaller than NVDEC supports
    data = good[0].read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 4 : -200] = bytes(len(data) - 200 - len(data) // 4)
    broken = {
        "half.webm": data[: len(data) // 2],
        "flipped.webm": bytes(flipped),
        "liar.webm": data.replace(b"V_VP9", b"V_VP8", 1),
        "text.mp4": b"not a video\n" * 50,
        "empty.webm": b"",
    }
    mixed = list(good)
    for number, (name, content) in enumerate(broken.items()):
        (tmp_path / name).write_bytes(content)
        mixed.insert(2 * number, tmp_path / name)
    scorer = Scorer(predictor, data=Data(threads=2), clip=tiny_run.recipe().clip)
    alone, among, again = (score(scorer, videos) for videos in (good, mixed, good))
    assert {row["status"] for row in alone.values()} == {"ok"} and len(alone) == len(good)
    assert set(among) == {path.name for path in mixed}
    for name, row in alone.items():
        assert among[name] == row and again[name] == row, name
    for name in ("half.webm", "text.mp4", "empty.webm", "liar.webm"):
        assert among[name]["status"].startswith("error: "), (name, among[name])
