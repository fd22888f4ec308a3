"""Faults while `ssv2rt index` writes: a full disk, a folder that may only be read, killed and simultaneous processes."""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ssv2rt.core.errors import UserError
from ssv2rt.core.locks import LockedError, exclusive
from ssv2rt.dataset import index as module
from ssv2rt.dataset.index import index, open_manifest
from ssv2rt.dataset.manifest import manifest_paths, read_manifest
from tests.cli import ssv2rt
from tests.conftest import numbered_video
from tests.faults import FAULTS, largest_file


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of three clips."""
    monkeypatch.setenv("SSV2RT_CACHE", str(tmp_path / "cache"))
    for name in ("up", "down"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(3):
            numbered_video(tmp_path / "data" / name / f"{number}.mp4", "libx264", frames=5 + number)
    return tmp_path / "data"


def changes(folder: Path) -> set[str]:
    """Names of the files that `index` may have left in a folder."""
    return {entry.name for entry in folder.iterdir() if entry.is_file()} if folder.is_dir() else set()


def test_a_full_disk_at_every_write_is_one_line(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "m.parquet"
    out.parent.mkdir()
    index(data, out=out)
    before = out.read_bytes()
    with FAULTS.at(0, out.parent):
        index(data, out=out)
    assert FAULTS.count > 4
    for number in range(1, FAULTS.count + 1):
        with FAULTS.at(number, out.parent):
            done = ssv2rt("index", data, "--out", out)
        assert (done.returncode, done.stdout) == (1, ""), number
        errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
        assert len(errors) == 1 and "No space left on device; choose another --out" in errors[0], done.stderr
        assert "Traceback" not in done.stderr
        assert changes(out.parent) == {"m.parquet", "m.quarantine.csv"} and read_manifest(out) is not None
    for size in (0, len(before) // 2, len(before) - 1):
        out.unlink()
        with largest_file(size), pytest.raises(UserError, match="File too large; choose another --out$"):
            index(data, out=out)
        assert changes(out.parent) == {"m.quarantine.csv"}
        index(data, out=out)


def test_a_read_only_data_set_has_its_manifest_in_the_cache(data: Path) -> None:
    with FAULTS.at(None, data, error=errno.EROFS):
        done = ssv2rt("index", data)
        again = ssv2rt("index", data)
    cached = manifest_paths(data)[1]
    assert done.returncode == again.returncode == 0 and changes(data) == set()
    for call in (done, again):
        assert f"cannot write to '{data}': Read-only file system; the manifest of '{data}' is kept in the cache" in (
            call.stderr
        )
        assert str(cached) in call.stderr and str(cached) in call.stdout
    assert cached.is_file() and len(open_manifest(data).table) == 6


def test_without_any_place_to_write_it_is_said_which_would_do(data: Path, tmp_path: Path) -> None:
    with FAULTS.at(None, data, tmp_path / "cache", error=errno.EROFS):
        done = ssv2rt("index", data)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert f"cannot write to '{data}': Read-only file system, and cannot write to '" in done.stderr
    assert "set SSV2RT_CACHE to a folder that you can write to, or choose one with `ssv2rt index --out`" in done.stderr


def test_of_two_index_commands_at_once_the_second_is_refused(data: Path) -> None:
    with exclusive(manifest_paths(data)[0], "indexing"):
        done = ssv2rt("index", data)
    assert done.returncode == 1 and changes(data) == set()
    assert (
        f"Error: process {os.getpid()} on " in done.stderr and f"is indexing '{data}/manifest.parquet'" in done.stderr
    )


def test_training_waits_for_another_process_that_is_indexing(
    data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (data / "up" / "0.mp4").write_bytes(b"damaged")
    probed: list[int] = []
    held, waits, others = threading.Event(), threading.Event(), []

    def hold() -> None:
        def wait(done: int, total: int) -> None:
            held.set()
            assert waits.wait(60)

        others.append(index(data, progress=wait)[0])

    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(60)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: (waits.set(), other.join(60)))
    manifest = open_manifest(data, progress=lambda done, total: probed.append(done))
    assert (
        probed == []
        and len(manifest.table) == 6
        and others[0].table.select(manifest.table.column_names) == (manifest.table)
    )
    assert capfd.readouterr().err.count("waiting: process ") == 1


@contextmanager
def left_by_a_killed_process(data: Path) -> Iterator[list[Path]]:
    names = (".manifest.parquet.abcdefgh.partial", ".quarantine.csv.abcdefgh.partial", ".manifest.parquet.lock")
    for name in names:
        (data / name).write_text("torn")
    yield [data / name for name in names]


def test_what_a_killed_process_left_is_removed(data: Path) -> None:
    with left_by_a_killed_process(data) as files:
        index(data)
        assert not any(file.exists() for file in files)
        assert changes(data) == {"manifest.parquet", "quarantine.csv"}


def test_a_refusal_to_write_is_known_before_clips_are_probed(data: Path) -> None:
    (data / "quarantine.csv").write_text("my,own\n1,2\n")
    probed: list[int] = []
    with pytest.raises(UserError, match="quarantine.csv' exists"):
        index(data, progress=lambda done, total: probed.append(done))
    assert probed == []


def test_the_lock_is_free_after_an_interrupted_call(data: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index(data, progress=stop)
    with exclusive(manifest_paths(data)[0], "indexing"), pytest.raises(LockedError):
        index(data)
    assert len(index(data)[0].table) == 6
