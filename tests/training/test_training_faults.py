"""Faults while training, evaluating and making data: full disks, two processes at once, killed ones, lost files.

Each fault is one line, and leaves the last whole checkpoint, from which training continues as if nothing had happened.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ssv2rt.core.errors import UserError
from ssv2rt.core.recipes import Synthetic
from ssv2rt.core.run_folders import Run, create_run
from ssv2rt.dataset.index import open_manifest
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.dataset.prepare import synthetic_set
from ssv2rt.dataset.synthetic import is_complete, synthesize
from ssv2rt.training.trainer import Trainer
from tests.cli import Done, ssv2rt
from tests.conftest import TINY, TINY_SETTINGS
from tests.core.test_locks import held_elsewhere
from tests.faults import FAULTS, largest_file
from tests.training.test_resume import assert_same, folder_with_data, manifest, recipe, start, uninterrupted, wait_for

__all__ = ["folder_with_data", "manifest", "uninterrupted"]  # fixtures

SAVE_OFTEN = "train.checkpoint_minutes=0.00001"


def hidden(folder: Path) -> list[str]:
    """Partial files and locks below a folder."""
    return [str(path.relative_to(folder)) for path in folder.rglob(".*")]


def one_line(done: Done, code: int = 1) -> str:
    last = done.stderr.splitlines()[-1]
    assert done.returncode == code and "Traceback" not in done.stderr and last.startswith("Error: "), done
    return last


def fit(run: Run, manifest: Manifest) -> None:
    trainer = Trainer(recipe(SAVE_OFTEN), manifest)
    if run.is_started:
        trainer.resume(run)
    try:
        trainer.fit(run)
    except BaseException:
        run.remove_unless_started()
        raise


def fault_and_resume(number: int, manifest: Manifest, whole: Run, place: Path) -> None:
    run = create_run(f"at{number}", root=place)
    with FAULTS.at(number, place), pytest.raises(UserError) as caught:
        fit(run, manifest)
    started = f"; mend that, and continue with `ssv2rt train --resume {run.name}`" if run.is_started else ""
    assert str(caught.value).startswith(f"the run '{run.path}' stopped: No space left on device; mend that, and ")
    assert str(caught.value).endswith(started) and caught.value.exit_code == 1
    if not run.path.exists():
        run = create_run(f"again{number}", root=place)
    fit(run, manifest)
    assert_same(whole, run)
    assert not hidden(place)


def changes_of_a_run(manifest: Manifest, place: Path) -> int:
    run = create_run("count", root=place)
    with FAULTS.at(0, place):
        fit(run, manifest)
    return FAULTS.count


def test_a_fault_at_a_change_of_a_run(manifest: Manifest, uninterrupted: Run, tmp_path: Path) -> None:
    total = changes_of_a_run(manifest, tmp_path)
    assert total > 60
    for number in (2, total // 2, total - 3):
        fault_and_resume(number, manifest, uninterrupted, tmp_path)


@pytest.mark.slow
def test_a_fault_at_every_change_of_a_run(manifest: Manifest, uninterrupted: Run, tmp_path: Path) -> None:
    for number in range(2, changes_of_a_run(manifest, tmp_path) + 1):
        fault_and_resume(number, manifest, uninterrupted, tmp_path)


def test_a_disk_that_is_full_within_a_checkpoint(
    folder_with_data: Path, manifest: Manifest, uninterrupted: Run, tmp_path: Path
) -> None:
    run = create_run("t", root=tmp_path)
    sizes = [file.stat().st_size for file in (uninterrupted.checkpoints / "last").resolve().iterdir()]
    with largest_file(0), pytest.raises(UserError, match="File too large; mend that, and start the run again"):
        fit(run, manifest)
    run = create_run("t", root=tmp_path)
    for size in (max(sizes) // 2, max(sizes) - 1):
        with FAULTS.at(40, tmp_path), pytest.raises(UserError, match="No space left"):
            fit(run, manifest)
        assert run.is_started
        with largest_file(size), pytest.raises(UserError, match="File too large; mend that, and continue with"):
            fit(run, manifest)
    fit(run, manifest)
    assert_same(uninterrupted, run)
    assert not hidden(tmp_path)


def test_two_processes_do_not_train_one_run(folder_with_data: Path, uninterrupted: Run) -> None:
    """The first is halted within its training. After it is killed, another one goes on."""
    words = ("ssv2-resnet3d18", "--data", "data", "--name", "t")
    process = start(*words, "--set", SAVE_OFTEN, cwd=folder_with_data)
    run = Run(folder_with_data / "runs" / "t")
    wait_for(lambda: run.is_started, process)
    process.send_signal(signal.SIGSTOP)
    before = run.metrics_file.read_bytes() if run.metrics_file.exists() else b""
    for words in (("--resume", "t"), ("--name", "t", "--data", "data")):
        said = one_line(ssv2rt("train", *words, cwd=folder_with_data))
        assert said.startswith(f"Error: process {process.pid} on ") and "is training 'runs/t'; wait for it" in said
    process.kill()
    process.communicate()
    assert (run.metrics_file.read_bytes() if run.metrics_file.exists() else b"") == before
    (run.checkpoints / ".epoch-0001.abcdefgh.partial").mkdir()
    (run.checkpoints / ".last.abcdefgh.partial").symlink_to("epoch-0001")
    (run.path / "summary").mkdir()
    (run.path / "summary" / ".curves.png.abcdefgh.partial").touch()
    assert ssv2rt("train", "--resume", "t", cwd=folder_with_data).returncode == 0
    assert_same(uninterrupted, run)
    assert not hidden(folder_with_data / "runs")


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "RUN", "--out", "out"),
        ("compare", "--data", "DATA", "--out", "out"),
        ("synthesize", "out", "--clips", "30"),
    ],
)
def test_two_processes_do_not_write_one_folder(
    words: tuple[str, ...], tiny_run: Run, tiny_set: Path, tmp_path: Path
) -> None:
    """What is said is what the owner of the lock does."""
    names = {"RUN": str(tiny_run.path), "DATA": str(tiny_set)}
    with held_elsewhere(tmp_path / "out") as process:
        said = one_line(ssv2rt(*(names.get(word, word) for word in words), cwd=tmp_path))
    assert said.startswith(f"Error: process {process.pid} on ") and "is building 'out'; wait for it" in said
    assert os.listdir(tmp_path) == [".out.lock"]


def test_of_two_first_uses_of_the_synthetic_set_one_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SSV2RT_CACHE", str(tmp_path))
    spec = Synthetic(clips=30, width=32, height=32, frames=(2, 3))
    folder = synthetic_set(spec)
    (folder / "train.json").unlink()
    with ThreadPoolExecutor(1) as pool:
        with held_elsewhere(folder) as process:
            waiting, said = pool.submit(synthetic_set, spec), ""
            while "waiting for" not in said:
                said += capfd.readouterr().err
                assert not waiting.done()
            assert f"waiting for process {process.pid} on " in said
        assert waiting.result(60) == folder and is_complete(folder)
    assert not hidden(tmp_path)


def test_what_a_killed_synthesize_left_is_removed(tmp_path: Path) -> None:
    """Its workers, and their partial files."""
    command = [sys.executable, "-m", "ssv2rt", "synthesize", "set", "--clips", "2000", "--size", "640x480"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any((tmp_path / "set" / "videos").glob("*.webm")), process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.communicate()
    wait_for(lambda: not any(is_alive(child) for child in children))
    assert children
    folder = tmp_path / "tiny"
    with (
        FAULTS.at(9, folder),
        pytest.raises(UserError, match="cannot write to '.*': No space left on device; mend that"),
    ):
        synthesize(folder, TINY, workers=1)
    (folder / "videos" / ".7.webm.abcdefgh.partial").touch()
    (folder / ".train.json.abcdefgh.partial").touch()
    synthesize(folder, TINY, workers=1)
    assert is_complete(folder) and not hidden(tmp_path / "tiny")


def is_alive(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def at_every_change(call: Callable[[], Done], folder: Path) -> None:
    """A fault at each change is one line and leaves nothing partial; without one the call succeeds."""
    number, failed = 0, 0
    while True:
        number += 1
        with FAULTS.at(number, folder):
            done = call()
        if FAULTS.count < number:
            break
        assert "No space left on device; " in one_line(done)
        assert not hidden(folder)
        failed += 1
    assert done.returncode == 0 and failed > 2, done


def test_evaluate_and_preview_with_a_full_disk(tiny_run: Run, tiny_set: Path, tmp_path: Path) -> None:
    at_every_change(lambda: ssv2rt("evaluate", tiny_run.path, "--out", tmp_path / "out"), tmp_path)
    shutil.rmtree(tmp_path / "out")
    for number in (1, 2):
        with FAULTS.at(number, tmp_path):
            assert "No space left" in one_line(ssv2rt("preview", tiny_set, "--clips", 1, "--out", tmp_path / "p.png"))
    assert not list(tmp_path.iterdir())


def test_compare_with_a_full_disk(tiny_set: Path, tmp_path: Path) -> None:
    settings = [word for setting in TINY_SETTINGS for word in ("--set", setting)]
    words = ("compare", "resnet2d18", "--data", tiny_set, "--out", tmp_path / "out", *settings)
    for number in (1, 2, 3, 9, 20):  # the lock, the folder, within training
        with FAULTS.at(number, tmp_path):
            assert "No space left on device" in one_line(ssv2rt(*words))
    assert ssv2rt(*words).returncode == 0
    at_every_change(lambda: ssv2rt(*words), tmp_path)


def test_a_manifest_that_cannot_be_written_is_done_without(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SSV2RT_CACHE", str(tmp_path / "cache"))
    shutil.copytree(tiny_set, tmp_path / "data", ignore=shutil.ignore_patterns("*manifest*", "*quarantine*"))
    with FAULTS.at(1, tmp_path, and_later=True):
        manifest = open_manifest(tmp_path / "data")
        assert len(manifest.split("train")) == 60
        said = one_line(ssv2rt("index", tmp_path / "data"))
    assert "probed again each time" in capfd.readouterr().err
    assert "cannot write" in said and said.endswith("choose one with `ssv2rt index --out`")
    assert sorted(os.listdir(tmp_path)) == ["data"]


def test_damaged_videos_stop_training_by_name(tiny_set: Path, tmp_path: Path) -> None:
    """They were whole when the manifest was made."""
    shutil.copytree(tiny_set, tmp_path / "data")
    manifest = open_manifest(tmp_path / "data")
    split = manifest.split("train")
    for row in range(12):
        path = split.path(row)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if row % 2 else b"no video" * 99)
    path.unlink()
    with pytest.raises(UserError) as caught:
        Trainer(recipe("data.max_bad=0.05"), manifest).fit(create_run("t", root=tmp_path))
    said = str(caught.value)
    assert "clips could not be decoded by epoch 1, step " in said and "more than data.max_bad = 0.05 allows: '" in said
    assert said.count(".webm' (") == 3 and " and 1 more; the log names each ('skipped')" in said, said
    assert "(truncated)" in said or "(unreadable)" in said
    for row in range(len(validation := manifest.split("validation"))):
        validation.path(row).write_bytes(b"")
    from ssv2rt.training.evaluate import evaluate

    trainer = Trainer(recipe(), manifest)
    with pytest.raises(
        UserError, match=r"none of the 10 clips of the split could be decoded: '.*\.webm' \(empty file\), "
    ):
        evaluate(trainer.model, validation, recipe(), device=trainer.group.device, precision="fp32")  # type: ignore[arg-type]


def test_a_run_is_not_resumed_with_other_clips(
    manifest: Manifest, uninterrupted: Run, tiny_set: Path, tmp_path: Path
) -> None:
    """The same number of clips and the same classes, but two clips have changed their labels."""
    shutil.copytree(tiny_set, tmp_path / "data", ignore=shutil.ignore_patterns("*manifest*"))
    Trainer(recipe(), open_manifest(tmp_path / "data")).resume(uninterrupted)  # a moved set is the same
    train = tmp_path / "data" / "train.json"
    clips = json.loads(train.read_text())
    other = next(clip for clip in clips if clip["template"] != clips[0]["template"])
    clips[0]["id"], other["id"] = other["id"], clips[0]["id"]
    train.write_text(json.dumps(clips))
    with pytest.raises(UserError, match="are not those that run .* was trained with: other names, labels, or lengths"):
        Trainer(recipe(), open_manifest(tmp_path / "data")).resume(uninterrupted)
