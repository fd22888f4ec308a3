"""Files read ahead: many at once, in order, within a bound of bytes."""

import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssv2rt.pipelines.prefetch import Prefetcher


def files(folder: Path, sizes: list[int]) -> list[Path]:
    paths = [folder / f"{number}" for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes(bytes([size % 251]) * size)
    return paths


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 500), min_size=1, max_size=60), st.integers(1, 8), st.integers(1, 1000))
def test_every_file_is_read_within_the_bound(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], readers: int, limit: int
) -> None:
    paths = files(tmp_path_factory.mktemp("a"), sizes)
    ahead = Prefetcher(readers=readers, limit=limit)
    futures = ahead.ask(paths[:10]) + ahead.ask(paths[10:])
    for future, size in zip(futures, sizes, strict=True):
        content = future.result(timeout=10)
        assert isinstance(content.source, bytes) and len(content.source) == size
        held = sum(len(f.result().source) for f in futures if f.done() and not f.cancelled() and not used(f))  # type: ignore[arg-type]
        assert held <= max(limit, *sizes)
        content.close()
        content.source = b""
    ahead.stop()


def used(future) -> bool:  # type: ignore[no-untyped-def]
    return future.result().source == b""


def test_slow_files_are_opened_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight files, each of which lets none through until all are open."""
    gate = threading.Barrier(8, timeout=20)
    read = Path.read_bytes

    def slow(path: Path) -> bytes:
        gate.wait()
        return read(path)

    paths = files(tmp_path, [10] * 8)
    monkeypatch.setattr(Path, "read_bytes", slow)
    ahead = Prefetcher(readers=8, limit=1000)
    assert [len(f.result(timeout=30).source) for f in ahead.ask(paths)] == [10] * 8  # type: ignore[arg-type]
    ahead.stop()


def test_what_cannot_be_read_is_said_and_keeps_no_one_waiting(tmp_path: Path) -> None:
    paths = files(tmp_path, [10, 10])
    folder = tmp_path / "folder"
    folder.mkdir()
    ahead = Prefetcher(readers=1, limit=10)
    missing, first, place, second = ahead.ask([tmp_path / "no", paths[0], folder, paths[1]])
    with pytest.raises(FileNotFoundError):
        missing.result(timeout=10)
    content = first.result(timeout=10)
    assert place.result(timeout=10).source == folder
    assert not second.done()
    content.close()
    assert second.result(timeout=10).source == b"\n" * 10
    ahead.stop()


def test_stopping_lets_the_waiting_go(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    ahead = Prefetcher(readers=4, limit=10)
    futures = ahead.ask(files(tmp_path, [10] * 20))
    futures[0].result(timeout=10)
    ahead.stop()
    until = time.monotonic() + 10
    while not all(future.done() for future in futures) and time.monotonic() < until:
        time.sleep(0.01)
    while (more := [t for t in threading.enumerate() if t not in before]) and time.monotonic() < until:
        time.sleep(0.01)
    assert not more
