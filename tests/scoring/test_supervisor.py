"""A video that makes its worker crash or hang gets an error row, and all others are scored."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssv2rt.core.errors import UserError
from ssv2rt.core.recipes import Data, Synthetic
from ssv2rt.core.worker_pool import WorkerSettings
from ssv2rt.dataset.synthetic import synthesize
from ssv2rt.engines.bundle import Bundle
from ssv2rt.pipelines.decoder_trust import Decision
from ssv2rt.scoring.journal import Journal, read_rows
from ssv2rt.scoring.row import Row
from ssv2rt.scoring.supervisor import Supervisor, Task
from ssv2rt.scoring.video_sources import Video


def deadly(**options: object) -> WorkerSettings:
    return WorkerSettings("tests.scoring.doubles:Deadly", dict(options))


def statuses(workers: list[WorkerSettings], names: list[str], timeout: float = 60.0) -> tuple[dict[str, str], int]:
    """The status of each video, and the number of restarts."""
    found: dict[int, str] = {}
    with Supervisor(workers, timeout=timeout) as supervisor:
        for rows in supervisor.score(iter(tasks(names))):
            for number, row in rows:
                assert number not in found and row["path"] == names[number], "one row each"
                found[number] = row["status"]
        restarts = supervisor.restarts
    assert sorted(found) == list(range(len(names)))
    return {names[number]: status for number, status in found.items()}, restarts


def tasks(names: list[str]) -> list[Task]:
    return [(number, Video.at(name)) for number, name in enumerate(names)]


def many(count: int, *bad: str) -> list[str]:
    names = [f"{number}.webm" for number in range(count)]
    for number, name in enumerate(bad):
        names.insert(7 * number + 3, name)
    return names


def test_good_videos_need_no_restart() -> None:
    found, restarts = statuses([deadly()], many(100))
    assert set(found.values()) == {"ok"} and restarts == 0


def test_workers_can_score_again() -> None:
    with Supervisor([deadly()], timeout=60) as supervisor:
        for _ in range(3):
            rows = [row for part in supervisor.score(iter(tasks(many(50)))) for row in part]
            assert len(rows) == 50


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9])
def test_any_number_of_videos(count: int) -> None:
    assert len(statuses([deadly()], many(count))[0]) == count


@pytest.mark.parametrize("what", ["abort", "segfault", "kill", "exit"])
def test_crashing_video_is_isolated(what: str) -> None:
    found, restarts = statuses([deadly()], many(60, f"{what}.webm"))
    assert found.pop(f"{what}.webm") == "error: decoder crashed"
    assert set(found.values()) == {"ok"} and restarts <= 5  # bisecting a batch of eight


def test_hanging_video_is_isolated() -> None:
    found, _ = statuses([deadly(videos=2)], many(20, "hang.webm"), timeout=3)
    assert found.pop("hang.webm") == "error: timeout"
    assert set(found.values()) == {"ok"}


def test_several_crashing_videos_and_workers() -> None:
    bad = ["abort-1.webm", "abort-2.webm", "kill.webm", "segfault.webm"]
    found, _ = statuses([deadly(), deadly(), deadly()], many(80, *bad))
    assert {found.pop(name) for name in bad} == {"error: decoder crashed"}
    assert set(found.values()) == {"ok"}


def test_only_crashing_videos() -> None:
    found, _ = statuses([deadly(videos=4)], [f"abort{n}.webm" for n in range(6)])
    assert set(found.values()) == {"error: decoder crashed"}


def test_crash_that_does_not_recur_costs_no_video(tmp_path: Path) -> None:
    found, restarts = statuses([deadly(log=str(tmp_path / "log"))], many(30, "flaky.webm"))
    assert set(found.values()) == {"ok"} and restarts == 1


def test_windows_go_on_after_crashes_that_do_not_recur(tmp_path: Path) -> None:
    """A video is given up once an attempt gets no further than those before it."""
    names = [str(tmp_path / name) for name in ("a.webm", "fits.webm", "abort.webm", "b.webm")]
    journal = Journal(tmp_path / "p.csv.journal", {}, resume=False, windows=True)
    with Supervisor([WorkerSettings("tests.scoring.doubles:Restless", {})], timeout=60) as supervisor:
        for part in supervisor.score(iter(tasks(names))):
            journal.write([row for _, row in part])
    journal.close()
    rows = list(read_rows(tmp_path / "p.csv.journal"))
    windows = {name: [(row["window"], row["status"]) for row in rows if row["path"] == name] for name in names}
    ok = [(window, "ok") for window in range(10)]
    assert windows[names[0]] == windows[names[1]] == windows[names[3]] == ok
    assert windows[names[2]] == [*ok[:6], (6, "error: decoder crashed")]


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.booleans(), max_size=30), st.integers(1, 5))
def test_one_row_per_video_despite_crashes(bad: list[bool], size: int) -> None:
    names = [f"{'abort' if one else 'fine'}{number}.webm" for number, one in enumerate(bad[:30])]
    found, _ = statuses([deadly(videos=size)], names)
    for name, status in found.items():
        assert status == ("error: decoder crashed" if name.startswith("abort") else "ok")


def test_an_engine_that_cannot_be_loaded_ends_the_run() -> None:
    with pytest.raises(UserError, match="the engine is for another machine"):
        statuses([WorkerSettings("tests.scoring.doubles:Refusing", {})], many(3))
    with pytest.raises(UserError, match="ends before it has begun"):
        statuses([WorkerSettings("tests.scoring.doubles:Stillborn", {})], many(3))


def test_videos_are_consumed_lazily() -> None:
    """An endless source works."""
    taken = 0

    def endless() -> Iterator[Task]:
        nonlocal taken
        while True:
            yield taken, Video.at(f"{taken}.webm")
            taken += 1

    with Supervisor([deadly()], timeout=60) as supervisor:
        for number, _ in enumerate(supervisor.score(endless())):
            if number == 20:
                break
    assert taken < 8 * (21 + 2 * 5)


def test_video_that_crashes_dali_is_decoded_by_pyav(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Also, a restarted worker is told which kinds of videos DALI is trusted with."""
    spec = Synthetic(clips=240, width=64, height=48, frames=(16, 20))
    synthesize(tmp_path / "set", spec, key_frames="first", workers=1)
    paths = sorted((tmp_path / "set" / "videos").iterdir())
    bad = [path.rename(path.with_name(f"abort-{path.name}")) for path in paths[-2:]]
    paths[-2:] = bad
    options = {"bundle": str(tiny_bundle.path), "top_k": 3, "clip": tiny_bundle.info.clip}
    by_dali = options | {"data": Data(decoder="dali", threads=2, readers=1, prefetch=1), "log": str(tmp_path / "log")}
    rows, trusted = scored(WorkerSettings("tests.scoring.doubles:aborting", by_dali), paths)
    plain, none = scored(
        WorkerSettings("ssv2rt.scoring.worker:make_scorer", options | {"data": Data(threads=2)}), paths
    )
    assert {row["status"] for row in rows.values()} == {"ok"} and rows.keys() == plain.keys()
    for name in map(str, bad):
        assert rows[name] == plain[name]
    assert any(rows[name] != plain[name] for name in rows)  # DALI rounds differently
    assert not none and {decision.counting for decision in trusted.values()} == {"shown"}
    assert len((tmp_path / "log").read_text().splitlines()) == 2 * len(trusted)


def scored(settings: WorkerSettings, paths: list[Path]) -> tuple[dict[str, Row], dict[str, Decision]]:
    with Supervisor([settings], timeout=60) as supervisor:
        rows = [row for part in supervisor.score(iter(tasks([str(path) for path in paths]))) for _, row in part]
        assert supervisor.restarts <= 1
        return {row["path"]: row for row in rows}, supervisor.trusted
