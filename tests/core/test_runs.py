"""Run directories and atomic writes."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ssv2rt.core.atomic_files import (
    atomic_file,
    atomic_folder,
    remove_partial_files,
    replace_folder,
    scratch_folder,
    write_text,
)
from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.core.run_folders import create_run, find_run


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail() -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_devices_and_pipes_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/a file that is not there")):
        with pytest.raises(OSError, match="it is no regular file"):
            write_text(path, "new")
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 1


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    code = (
        "import sys, time; from pathlib import Path; from ssv2rt.core.atomic_files import atomic_file\n"
        "with atomic_file(Path(sys.argv[1])) as t:\n"
        "    t.write_text('new'); print('written', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert path.read_text() == "old"
    remove_partial_files(path)
    assert len(os.listdir(tmp_path)) == 2, "a new temporary file may still be in use"
    remove_partial_files(path, older_than=-1)
    assert os.listdir(tmp_path) == ["a.txt"]


def test_atomic_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_text(tmp_path / "whole", "x")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_atomic_folders_replace_old_ones_and_clean_up(tmp_path: Path) -> None:
    for content in ("1", "2"):
        with atomic_folder(tmp_path / "d") as folder:
            (folder / "x").write_text(content)
    assert (tmp_path / "d" / "x").read_text() == "2"
    with scratch_folder(tmp_path) as scratch:
        (scratch / "x").write_text("3")
        replace_folder(scratch, tmp_path / "d")
    assert (tmp_path / "d" / "x").read_text() == "3"
    assert os.listdir(tmp_path) == ["d"]


def test_latest_points_to_the_newest_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run yet"):
        find_run(root=tmp_path / "runs")
    first = create_run("demo", root=tmp_path / "runs")
    second = create_run("demo", root=tmp_path / "runs")
    assert first.path != second.path
    with pytest.raises(UserError, match="no run yet"):  # neither has a recipe, let alone a checkpoint
        find_run(root=tmp_path / "runs")
    first.recipe_file.touch()
    with pytest.raises(UserError, match=f"wait until {first.name} has trained its first epoch"):
        find_run(root=tmp_path / "runs")
    second.make_latest()
    assert find_run(root=tmp_path / "runs").path == second.path
    first.make_latest()
    assert find_run(root=tmp_path / "runs").path == first.path


def test_latest_may_be_a_folder_or_be_reached_by_another_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create_run("demo", root=tmp_path / "runs")
    run.recipe_file.touch()
    run.make_latest()
    shutil.copytree(tmp_path / "runs", tmp_path / "copied")  # links become folders
    assert find_run(root=tmp_path / "copied").recipe_file.is_file()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert find_run("../runs/latest").path.resolve() == run.path.resolve()


def test_runs_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    run = create_run("demo", name="mine", root=tmp_path)
    run.recipe_file.touch()
    assert find_run("mine", root=tmp_path).path == run.path
    assert find_run(str(run.path), root=tmp_path / "elsewhere").path == run.path
    with pytest.raises(UserError, match=r"no run 'mien'; did you mean 'mine'\?"):
        find_run("mien", root=tmp_path)
    with pytest.raises(UserError, match="exists; choose another --name"):
        create_run("demo", name="mine", root=tmp_path)
    for name in ("../mine", "latest", ".hidden", "two\nlines", "x" * 300):
        with pytest.raises(UsageError, match="plain folder name"):
            create_run("demo", name=name, root=tmp_path)
