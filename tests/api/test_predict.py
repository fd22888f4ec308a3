"""`ssv2rt.load` and what a model gives, held against an independent path and against `ssv2rt score`."""

from __future__ import annotations

import html
import subprocess
import sys
import threading
from itertools import count, islice
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import ssv2rt
from ssv2rt.api.network import network_of
from ssv2rt.core.recipe_files import load_engine_recipe
from ssv2rt.core.run_folders import Run
from ssv2rt.dataset.index import open_manifest
from ssv2rt.engines.build import build_engine
from ssv2rt.engines.bundle import Bundle
from ssv2rt.engines.in_pytorch import PyTorchRunner
from tests import cli
from tests.api.independent import preprocess


@pytest.fixture(scope="module")
def exact(tiny_run: Run, tiny_set: Path) -> Bundle:
    """The fp32 engine of the tiny run."""
    bundle, _ = build_engine(
        tiny_run, load_engine_recipe("fp32", ("gate.clips=10",)), "openvino", open_manifest(tiny_set)
    )
    return bundle


@pytest.fixture(scope="module")
def model(exact: Bundle) -> ssv2rt.Model:
    return ssv2rt.load(exact.path)


@pytest.fixture(scope="module")
def videos(tiny_set: Path) -> list[Path]:
    return sorted((tiny_set / "videos").iterdir())[:12]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def test_results_equal_those_of_pyav_and_onnxruntime_alone(
    model: ssv2rt.Model, exact: Bundle, videos: list[Path]
) -> None:
    session = onnxruntime.InferenceSession(exact.onnx_file)
    for path, found in zip(videos, model.predict(videos), strict=True):
        clip = preprocess(path, frames=4, size=32, share=1.0)
        logits = session.run(["logits"], {session.get_inputs()[0].name: clip[None]})[0][0]
        assert found.video == str(path) and found.ok
        assert found.label == model.labels[int(logits.argmax())]
        assert found.probabilities == pytest.approx(softmax(logits), abs=1e-4)
        assert found.top(3)[0] == (found.label, found.probability)


def test_every_kind_of_input_gives_the_same(model: ssv2rt.Model, videos: list[Path], tmp_path: Path) -> None:
    archive = tmp_path / "clips.tar"
    subprocess.run(["tar", "cf", archive, "-C", videos[0].parent, videos[0].name], check=True)
    (tmp_path / "list.txt").write_text(f"{videos[0]}\n")
    expected = next(model.predict(videos[0]))
    inputs = [str(videos[0]), videos[0].read_bytes(), archive, f"file://{videos[0]}", f"@{tmp_path / 'list.txt'}"]
    found = list(model.predict(inputs))
    assert [p.video for p in found][1:3] == ["<bytes 1>", f"{archive}/{videos[0].name}"]
    for prediction in found:
        assert np.array_equal(prediction.logits, expected.logits)
        page = prediction._repr_html_()
        assert "<img alt='' src='data:image/jpeg;base64," in page and html.escape(str(prediction.label)) in page


def test_frames_in_memory_are_sampled_and_cropped_as_those_of_a_file(model: ssv2rt.Model, tmp_path: Path) -> None:
    video = tmp_path / "a.mkv"
    pattern = "testsrc2=size=96x64:rate=12:duration=1"
    subprocess.run(
        ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", pattern, "-c:v", "ffv1", "-pix_fmt", "gbrp", video], check=True
    )
    raw = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", video, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
        check=True,
        capture_output=True,
    )
    frames = np.frombuffer(raw.stdout, np.uint8).reshape(12, 64, 96, 3)
    one, two, three = model.predict([frames, video, torch.from_numpy(frames.copy())])
    assert (one.video, one.frames, three.video) == ("<array 0>", 12, "<array 2>")
    assert np.array_equal(one.logits, two.logits) and np.array_equal(one.logits, three.logits)
    assert not np.array_equal(next(model.predict(frames[::-1])).logits, one.logits)


def test_inputs_come_in_order_with_an_error_for_what_cannot_be_read(
    model: ssv2rt.Model, videos: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = np.zeros((5, 40, 50, 3), np.uint8)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.webm").write_bytes(b"no video")
    inputs = [videos[0], frames, tmp_path / "gone.webm", videos[1], tmp_path / "broken.webm", videos[0]]
    found = list(model.predict([tmp_path / "empty", *inputs]))
    assert f"no videos in '{tmp_path / 'empty'}'" in caplog.text
    assert [p.status for p in found] == ["ok", "ok", "error: missing", "ok", "error: unreadable", "ok"]
    assert [p.video for p in found] == [str(i) if isinstance(i, Path) else "<array 2>" for i in inputs]
    assert (found[2].label, found[2].probability, found[2].top(), found[2].frames) == (None, None, [], None)
    assert "error: missing" in repr(found[2]) and "error: missing" in found[2]._repr_html_()
    assert np.array_equal(found[0].logits, found[5].logits)
    with pytest.raises(ssv2rt.UserError, match="no videos in '.*empty'"):
        list(model.predict(tmp_path / "empty"))


def test_predictions_stream_from_endless_inputs(model: ssv2rt.Model, videos: list[Path]) -> None:
    endless = (videos[number % len(videos)] for number in count())
    assert [p.video for p in islice(model.predict(endless), 40)] == [str(videos[n % 12]) for n in range(40)]


def test_it_gives_what_the_command_gives(model: ssv2rt.Model, exact: Bundle, tiny_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "preds.csv"
    done = cli.ssv2rt("score", tiny_set / "videos", "--engine", exact.path, "--out", out, "--sort")
    assert done.returncode == 0, done.stderr
    rows = [line.split(",") for line in out.read_text().splitlines()[1:]]
    found = {p.video: p for p in model.predict(tiny_set / "videos")}
    assert len(rows) == len(found) == 80
    for row in rows:
        assert found[row[0]].label == row[3]
        assert found[row[0]].probability == pytest.approx(float(row[4]), abs=1e-6)


def test_embeddings_logits_and_views(model: ssv2rt.Model, videos: list[Path], tmp_path: Path) -> None:
    features = model.embed(videos)
    assert features.shape == (12, model.features) and features.dtype == np.float32
    with_features = next(model.predict(videos[0], embeddings=True))
    assert np.array_equal(with_features.embedding, features[0])
    clips = np.stack([preprocess(path, frames=4, size=32, share=1.0) for path in videos])
    logits = model.logits(clips)
    assert logits.dtype == np.float32 and np.array_equal(logits[0], with_features.logits)
    assert np.array_equal(model.logits(torch.from_numpy(clips)).numpy(), logits)
    assert model.logits(clips[:0]).shape == (0, len(model.labels))
    more = next(model.predict(videos[0], views="2x3"))
    assert not np.array_equal(more.logits, with_features.logits)
    assert more.probabilities is not None and more.probabilities.sum() == pytest.approx(1, abs=1e-5)
    (tmp_path / "broken.webm").write_bytes(b"no video")
    with pytest.raises(ssv2rt.UserError, match="broken.webm' has no features"):
        model.embed([videos[0], tmp_path / "broken.webm"])
    holes = model.embed([videos[0], tmp_path / "broken.webm"], on_error="nan")
    assert np.isnan(holes[1]).all() and np.array_equal(holes[0], features[0])


def test_windows_equal_those_of_the_command(
    model: ssv2rt.Model, exact: Bundle, videos: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "windows.csv"
    done = cli.ssv2rt("score", videos[0], "--engine", exact.path, "--out", out, "--window", "0.5", "--hop", "0.25")
    assert done.returncode == 0, done.stderr
    rows = [line.split(",") for line in out.read_text().splitlines()[1:]]
    found = list(model.windows([videos[0]], seconds=0.5, hop=0.25))
    assert [(w.start, w.end, w.label) for w in found] == [(float(r[2]), float(r[3]), r[5]) for r in rows]
    with pytest.raises(ssv2rt.UsageError, match="times of its frames are unknown"):
        list(model.windows(np.zeros((5, 40, 50, 3), np.uint8), seconds=1))


def test_a_run_without_an_engine_predicts_in_pytorch(
    tiny_run: Run, model: ssv2rt.Model, videos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_pytorch = ssv2rt.load(tiny_run.path, engine="pytorch")
    assert "fp32 by pytorch" in repr(in_pytorch)
    for one, two in zip(in_pytorch.predict(videos), model.predict(videos), strict=True):
        assert one.label == two.label and one.logits == pytest.approx(two.logits, abs=1e-4)
    assert in_pytorch.embed(videos) == pytest.approx(model.embed(videos), abs=1e-4)
    elsewhere = network_of(tiny_run.path, "pytorch").runner(torch.device("meta"))  # as a worker on another GPU
    assert isinstance(elsewhere, PyTorchRunner) and elsewhere._network.head.weight.is_meta
    monkeypatch.chdir(tiny_run.path.parents[1])
    assert ssv2rt.load(tiny_run.name, engine="fp32").labels == model.labels
    with pytest.raises(ssv2rt.UserError, match="no engine 'int9'"):
        ssv2rt.load(tiny_run.name, engine="int9")


def test_threads_share_a_model(model: ssv2rt.Model, videos: list[Path]) -> None:
    expected = [p.logits for p in model.predict(videos)]
    found: list[list[np.ndarray | None]] = []
    threads = [
        threading.Thread(target=lambda: found.append([p.logits for p in model.predict(videos)])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(np.array_equal(one, two) for logits in found for one, two in zip(logits, expected, strict=True))


@pytest.mark.parametrize("wrong", [5, np.zeros((4, 5, 5, 3), np.float32), np.zeros((5, 5, 3), np.uint8), [3.5]])
def test_other_inputs_are_refused(model: ssv2rt.Model, wrong: object) -> None:
    with pytest.raises(ssv2rt.UsageError):
        list(model.predict(wrong))  # type: ignore[arg-type]


def test_a_script_without_a_main_guard_has_workers_and_survives_their_death(
    tiny_run: Run, tiny_bundle: Bundle, videos: list[Path], tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, sys, ssv2rt\n"
        "print('once')\n"
        "model = ssv2rt.load(sys.argv[1], workers=2, **({'engine': sys.argv[2]} if sys.argv[2] else {}))\n"
        "for number, p in enumerate(model.predict(sys.argv[3:])):\n"
        "    print(p.video, p.status)\n"
        "    if number == 0:\n"
        "        multiprocessing.active_children()[0].kill()\n"
    )
    for source, engine in ((tiny_bundle.path, ""), (tiny_run.path, "pytorch")):
        done = subprocess.run(
            [sys.executable, script, source, engine, *videos], capture_output=True, text=True, check=True, timeout=300
        )
        assert done.stdout.splitlines() == ["once", *(f"{path} ok" for path in videos)]


def test_importing_the_package_loads_nothing_else() -> None:
    heavy = "{'torch', 'nvidia', 'numpy', 'av', 'pydantic', 'click'}"
    code = f"import sys, ssv2rt; assert not {heavy} & {{m.split('.')[0] for m in sys.modules}}; dir(ssv2rt)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(ssv2rt.__all__) <= set(dir(ssv2rt))
    assert all(getattr(ssv2rt, name).__doc__ for name in ssv2rt.__all__ if name != "__version__")
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        ssv2rt.predict  # noqa: B018
