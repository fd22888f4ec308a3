"""Shared pieces: small real data, a run trained on it, and an engine of that run."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver as forkserver
import os
import signal
from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path

# Before numpy and torch are imported. The networks of tests are so small that threads cost more than they give, and where test
# processes share the cores, threads that wait for each other take several times the processor time. Processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# On a GPU, PyTorch reads it at the first matrix product of a process, so that later tests could not train deterministically.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import av
import numpy as np
import pytest

from ssv2rt.core.recipes import Synthetic

REAL = Path(__file__).resolve().parents[2] / "shared"
"""Real clips and SSv2's label list, where the machine has them."""

TINY = Synthetic(clips=80, width=64, height=48, frames=(10, 14))
TINY_SETTINGS = (
    "clip.frames=4",
    "clip.size=32",
    "clip.center_crop=1.0",
    "model.width=4",
    "model.temporal_strides=[1,2,2,1]",
    "model.dropout=0.0",
    "train.epochs=1",
    "train.warmup_epochs=0",
    "train.batch_size=8",
    "train.accumulate=1",
    "train.precision=fp32",
)
"""Overrides that make any recipe train in seconds."""


with contextlib.suppress(ImportError):  # the tests for a GPU run without it
    import hypothesis

    # A deadline for each example would be an assertion about time, on machines that do other things as well. Examples are the
# same each time, so that a test fails where its code changed; `pytest --hypothesis-profile search` looks for new ones.
hypothesis.settings.register_profile("repository", deadline=None, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("repository")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell leaves it to what runs in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _messages() -> None:
    """Messages go to stderr, as the command has it."""
    from ssv2rt.core.log import log_to_stderr

    log_to_stderr()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is read from or written to the user's cache."""
    os.environ["SSV2RT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _quick_workers(_own_cache: None) -> Iterator[None]:
    """Workers are forked from a process that has imported what they need. `python -m ssv2rt` spawns them, as for users."""
    from ssv2rt.core import worker_pool

    multiprocessing.set_forkserver_preload(
        ["ssv2rt.scoring.scorer", "ssv2rt.scoring.window_scorer", "ssv2rt.engines.backends.openvino"]
    )
    with pytest.MonkeyPatch.context() as patch:
        forkserver.ensure_running()  # its socket is in a temporary folder, which `score` would remove as its own
        patch.setattr(worker_pool, "_PROCESSES", multiprocessing.get_context("forkserver"))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(0))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture is made for it, a test that needs a GPU is skipped without one, or fails if that is wanted."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            if os.environ.get("SSV2RT_REQUIRE_GPU") == "1":
                pytest.fail("SSV2RT_REQUIRE_GPU=1, and there is no GPU", pytrace=False)
            pytest.skip("needs a GPU")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Names that are not UTF-8, in what a test logs, would end the processes that run tests: they send reports as UTF-8."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def real_videos() -> Path:
    folder = REAL / "videos"
    if not folder.is_dir():
        pytest.skip("no real clips on this machine")
    return folder


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 synthetic clips of 64x48; not to be changed by a test."""
    from ssv2rt.dataset.synthetic import synthesize

    folder = tmp_path_factory.mktemp("data") / "tiny"
    synthesize(folder, TINY, workers=1)
    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_set: Path):  # type: ignore[no-untyped-def]
    """A run trained for an epoch on the tiny set."""
    from ssv2rt.core.recipe_files import load_recipe
    from ssv2rt.core.run_folders import create_run
    from ssv2rt.dataset.index import open_manifest
    from ssv2rt.training.trainer import Trainer

    recipe = load_recipe("ssv2-resnet3d18", (f"data.root='{tiny_set}'", *TINY_SETTINGS))
    run = create_run("tiny", root=tmp_path_factory.mktemp("work") / "runs")
    Trainer(recipe, open_manifest(tiny_set)).fit(run)
    return run


@pytest.fixture(scope="session")
def tiny_bundle(tiny_run, tiny_set: Path):  # type: ignore[no-untyped-def]
    """An fp16 engine of the tiny run."""
    from ssv2rt.core.recipe_files import load_engine_recipe
    from ssv2rt.dataset.index import open_manifest
    from ssv2rt.engines.build import build_engine

    bundle, failures = build_engine(
        tiny_run, load_engine_recipe("fp16", ("gate.clips=10",)), "openvino", open_manifest(tiny_set)
    )
    assert not failures
    return bundle


def numbered_video(path: Path, codec: str, *, frames: int, width: int = 64, height: int = 48, gop: int = 100) -> Path:
    """A video whose frame k is grey of value 20 + 7k, so that a decoded frame tells its number (to 32, then anew)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, 12)
        stream.codec_context.gop_size = gop
        if codec == "mjpeg":
            stream.pix_fmt = "yuvj420p"
        for number in range(frames):
            picture = np.full((height, width, 3), 20 + 7 * (number % 32), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def frame_numbers(clip: np.ndarray) -> list[int]:
    """Which frames of a `numbered_video` a clip (T, H, W, 3) consists of."""
    return [round((float(frame.mean()) - 20) / 7) for frame in clip]


CORNERS = {
    "top left": (220, 20, 20),
    "top right": (20, 220, 20),
    "bottom left": (20, 20, 220),
    "bottom right": (220,) * 3,
}


def corners(path: Path, degrees: int = 0, space: int = 5, range_: int = 1, codec: str = "libx264") -> Path:
    """A video of 64x48 with a colour in each corner, to be turned counter-clockwise when shown."""
    picture = np.zeros((48, 64, 3), np.uint8)
    for color, (y, x) in zip(CORNERS.values(), ((0, 0), (0, 32), (24, 0), (24, 32)), strict=True):
        picture[y : y + 24, x : x + 32] = color
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12, options={"crf": "4"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = space, range_
        if degrees:
            stream.set_display_rotation(degrees)
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=space, dst_color_range=range_)
            frame.colorspace, frame.color_range = space, range_
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
