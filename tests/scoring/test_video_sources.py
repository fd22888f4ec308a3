"""Videos in tar files and at URLs score like files."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.core.recipes import Data
from ssv2rt.engines.bundle import Bundle
from ssv2rt.pipelines import prefetch as readahead
from ssv2rt.scoring.discover import check_inputs, discover
from ssv2rt.scoring.predictor import Predictor
from ssv2rt.scoring.row import Row, named_row
from ssv2rt.scoring.scorer import Scorer
from ssv2rt.scoring.storage_watch import StorageWatch
from ssv2rt.scoring.video_sources import Video
from ssv2rt.video.container import BadVideo, open_video
from ssv2rt.video.probe import probe
from ssv2rt.video.storage import ByteRange, is_address
from tests.cli import ssv2rt


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def rows_of(bundle: Bundle, videos: list[Video]) -> list[Row]:
    """Rows without the names, which differ between sources."""
    scorer = Scorer(Predictor(bundle, top_k=2), data=Data(threads=2), clip=bundle.info.clip)
    tasks = list(enumerate(videos))
    batches = [tasks[at : at + scorer.videos] for at in range(0, len(tasks), scorer.videos)]
    rows = [row for batch in scorer.score(batches) for _, row in batch]
    return [{name: value for name, value in row.items() if name not in ("path", "video")} for row in rows]


@pytest.fixture(scope="module")
def clips(tiny_set: Path) -> list[Path]:
    return sorted((tiny_set / "videos").iterdir())[:6]


@pytest.fixture
def bucket(clips: list[Path]) -> str:
    """The URL of a folder with the clips."""
    system = fsspec.filesystem("memory")
    for clip in clips:
        system.pipe(f"/bucket/in/{clip.name}", clip.read_bytes())
    system.pipe("/bucket/in/.hidden.webm", b"")
    system.pipe("/bucket/in/notes.txt", b"")
    yield "memory://bucket/in"
    system.rm("/bucket", recursive=True)


def test_tar_members_score_like_files(tiny_bundle: Bundle, clips: list[Path], tmp_path: Path) -> None:
    members = {f"part/{clip.name}": clip.read_bytes() for clip in clips}
    tar_of(tmp_path / "a.tar", members | {"part/._x.webm": b"", "part/1.json": b"{}"})
    found = list(discover([str(tmp_path)]))
    assert [video.name for video in found] == [f"{tmp_path}/a.tar/{name}" for name in members]
    assert rows_of(tiny_bundle, found) == rows_of(tiny_bundle, list(discover([str(clip) for clip in clips])))
    os.symlink(tmp_path / "a.tar", tmp_path / "b.tar")
    assert len(list(discover([str(tmp_path), str(tmp_path / "b.tar")]))) == len(clips), "the same tar is read once"


def test_damaged_tar_gets_a_row_after_its_intact_members(
    tiny_bundle: Bundle, clips: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tar_of(tmp_path / "a.tar", {clip.name: clip.read_bytes() for clip in clips[:3]}).read_bytes()
    cut = whole.index(clips[2].read_bytes()) + 100
    (tmp_path / "a.tar").write_bytes(whole[:cut])
    found = list(discover([str(tmp_path / "a.tar")]))
    assert [video.name.removeprefix(f"{tmp_path}/") for video in found[:2]] == [f"a.tar/{c.name}" for c in clips[:2]]
    status = [row["status"] for row in rows_of(tiny_bundle, found)]
    assert status[:2] == ["ok", "ok"] and status[2:] and all(s.startswith("error: ") for s in status[2:])
    (tmp_path / "junk.tar").write_bytes(b"junk" * 1000)
    assert [row["status"] for row in rows_of(tiny_bundle, list(discover([str(tmp_path / "junk.tar")])))] == [
        "error: unreadable"
    ]
    assert "cannot read" in capsys.readouterr().err
    (tmp_path / "c.tar.gz").touch()
    with pytest.raises(UsageError, match="is compressed"):
        check_inputs([str(tmp_path / "c.tar.gz")])


def named_in(tar: Path) -> list[str]:
    return [video.name.removeprefix(f"{tar}/") for video in discover([str(tar)])]


def header(name: str, size: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A tar header with these twelve bytes as the size."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    block[124:136], block[156:157], block[148:156] = size, kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_tar_damage_anywhere_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where tarfile stops silently, raises another error, or loops forever."""
    names = ["a.webm", "b.webm", "c.webm"]
    whole = tar_of(tmp_path / "whole.tar", dict.fromkeys(names, b"x" * 700)).read_bytes()
    end = 3 * 3 * 512
    for cut in [*range(300, end, 512), *range(512, end, 512)]:
        path = tmp_path / f"{cut}.tar"
        path.write_bytes(whole[:cut])
        assert str(path) in named_in(path) or (
            cut % 1536 == 0 and f"'{path}' has no end-of-archive mark" in capsys.readouterr().err
        )
    huge, negative = b"\x80" + b"\x7f" * 11, b"\xff" * 10 + (-1536 & 0xFFFF).to_bytes(2, "big")
    for at, (size, kind) in enumerate(((huge, b"0"), (huge, tarfile.XHDTYPE), (negative, b"0"), (b"junk" * 3, b"0"))):
        path = tmp_path / f"odd{at}.tar"
        path.write_bytes(whole[:1536] + header("b.webm", size, kind) + whole[2048:])
        found = named_in(path)
        assert found[0] == "a.webm" and found[-1] == str(path), found


def test_hidden_files_and_links_in_a_tar_are_skipped(
    clips: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(clips[0], "./a.webm")
        archive.add(clips[0], ".cache/b.webm")
        for name, kind in (("c.webm", tarfile.SYMTYPE), ("d.webm", tarfile.LNKTYPE), ("e.json", tarfile.LNKTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "./a.webm"
            archive.addfile(link)
    assert named_in(tmp_path / "a.tar") == named_in(tmp_path / "a.tar") == ["./a.webm"]
    said = capsys.readouterr().err
    assert said.count("has 2 links in place of videos") == 1, said


def test_odd_headers_of_a_tar_are_its_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A GNU sparse header that goes on behind the end, and headers that declare gigabytes."""
    first = tar_of(tmp_path / "a.tar", {"a.webm": b"x" * 700}).read_bytes()[:1536]
    sparse = bytearray(header("b.webm", b"00000001000\0", tarfile.GNUTYPE_SPARSE))
    sparse[482] = 1  # more entries follow, it says
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    endings = {"sparse": bytes(sparse)}
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
        endings[f"long-{kind.decode()}"] = header("x", b"%011o\0" % (6 << 30), kind)
    for name, ending in endings.items():
        path = tmp_path / f"{name}.tar"
        path.write_bytes(first + ending)
        if name.startswith("long"):
            os.truncate(path, 6 << 30)  # so that the bytes are there
        assert named_in(path) == ["a.webm", str(path)]
    assert capsys.readouterr().err.count("a header of 6442450944 bytes") == 4


def test_what_is_left_out_of_a_tar_is_said_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in (
            "a.webm",
            "b/b.webm",
            "a.webm",
            "in.tar",
            "in.tar.gz",
            "\udcff\n.webm",
            "\udcff\n.webm",
            "notes.txt",
        ):
            archive.addfile(tarfile.TarInfo(name))
    assert named_in(tmp_path / "a.tar") == ["a.webm", "b/b.webm", "\udcff\n.webm"]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert (
        r"has 2 further members with the name of an earlier one, which are left out: 'a.webm', '\xff .webm';" in said[0]
    )
    assert "has 2 archives inside it, which are left out: 'in.tar', 'in.tar.gz';" in said[1]


def test_what_is_left_out_below_a_folder_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.webm", "b.tar.gz", "cover.jpg", "clip1/0001.jpg", "clip1/0002.jpg", "clip2/0001.PNG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [video.name for video in discover([str(tmp_path)])] == [str(tmp_path / "a.webm")]
    compressed, pictures = capsys.readouterr().err.splitlines()
    assert f"has 1 compressed archives, which are left out: '{tmp_path}/b.tar.gz'; unpack them" in compressed
    clips = f"'{tmp_path}/clip1', '{tmp_path}/clip2'"
    assert f"has 2 folders of pictures, which are left out: {clips}; make videos of them" in pictures


def test_special_characters_in_urls(clips: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    names = ["a b.webm", "%20.webm", "#.webm", "q?.webm", "[1].webm", "a::b.webm", "non\udcffutf.webm", "s [2]/x.webm"]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        os.link(clips[0], folder / name)
    (folder / ".hidden").mkdir()
    os.link(clips[0], folder / ".hidden" / "x.webm")
    os.symlink("a b.webm", folder / "again.webm")
    (tmp_path / "list.txt").write_bytes(b"\n".join(os.fsencode(f"file://{folder}/{name}") for name in names))
    for inputs in ([f"file://{folder}"], [f"file://{folder}/{name}" for name in names], [f"@{tmp_path}/list.txt"]):
        found = list(discover(inputs))
        assert sorted(video.name for video in found) == sorted(f"file://{folder}/{name}" for name in names)
        assert all(probe(video.location) == probe(clips[0]) for video in found)
    assert len(list(discover([f"file://{folder}", str(folder)]))) == len(names), "the same file is scored once"
    os.mkfifo(tmp_path / "pipe.webm")
    with pytest.raises(BadVideo, match="unreadable"):
        open_video(next(discover([f"file://{tmp_path}/pipe.webm"])).location)
    system = fsspec.filesystem("memory")
    for name in ("a[1].webm", "s[2]/x.webm", ".hidden/x.webm"):
        system.pipe(f"/odd/{name}", clips[0].read_bytes())
    assert [video.name for video in discover(["memory://odd"])] == [
        "memory:///odd/a[1].webm",
        "memory:///odd/s[2]/x.webm",
    ]
    assert len(list(discover(["memory://odd/a[1].webm", "memory://odd/s[2]"]))) == 2
    system.rm("/odd", recursive=True)


def test_archive_behind_a_chained_url(clips: list[Path], tmp_path: Path) -> None:
    """fsspec closes the archive when its file system is garbage-collected."""
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(clips[0], "in/a.webm")
    for inner in ("", "in", "in/a.webm", "in/*.webm"):
        (video,) = discover([f"zip://{inner}::file://{tmp_path}/z.zip"])
        assert video.name == f"zip://in/a.webm::file://{tmp_path}/z.zip" and probe(video.location) == probe(clips[0])


def test_storage_errors_are_reported(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage raises its own error types, and no folder may be skipped silently."""
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/in/locked/a.webm", b"")
    look = type(system).ls

    def ls(self: object, path: str, *arguments: object, **options: object) -> object:
        if "locked" in path:
            raise TypeError("403 Forbidden")
        return look(self, path, *arguments, **options)

    monkeypatch.setattr(type(system), "ls", ls)
    assert [video.name for video in discover([bucket])][-1] == "memory:///bucket/in/locked"
    with pytest.raises(UserError, match="cannot look into 'memory://bucket/in/locked': TypeError: 403 Forbidden"):
        check_inputs([f"{bucket}/locked"])
    with pytest.raises(UserError, match="cannot look into 'data://x'"):
        check_inputs(["data://x"])
    (tmp_path / "list.txt").write_text("s3://bucket/a.webm\n" * 2)
    with pytest.raises(UserError, match="'s3://': .* install that package"):
        check_inputs([f"@{tmp_path}/list.txt"])


def test_urls_score_like_files(tiny_bundle: Bundle, clips: list[Path], bucket: str, tmp_path: Path) -> None:
    expected = rows_of(tiny_bundle, list(discover([str(clip) for clip in clips])))
    names = [f"{bucket}/{clip.name}" for clip in clips]
    found = list(discover([bucket]))
    assert [Path(video.name).name for video in found] == [clip.name for clip in clips]
    assert all(is_address(video.name) for video in found) and rows_of(tiny_bundle, found) == expected
    for inputs in (names, [f"{bucket}/*.webm"], [f"file://{clip}" for clip in clips]):
        assert rows_of(tiny_bundle, list(discover(inputs))) == expected
    (tmp_path / "list.txt").write_text("\n".join([*names, f"{bucket}/gone.webm"]))
    rows = rows_of(tiny_bundle, list(discover([f"@{tmp_path / 'list.txt'}"])))
    assert rows == [*expected, {"status": "error: missing"}]
    tar_of(tmp_path / "a.tar", {clip.name: clip.read_bytes() for clip in clips})
    fsspec.filesystem("memory").pipe("/bucket/tars/a.tar", (tmp_path / "a.tar").read_bytes())
    assert rows_of(tiny_bundle, list(discover(["memory://bucket/tars"]))) == expected


def test_missing_urls_are_errors() -> None:
    with pytest.raises(UsageError, match="nothing at 'memory://nowhere'"):
        check_inputs(["memory://nowhere"])
    with pytest.raises(UserError, match="fsspec knows no 'memry://'; did you mean 'memory'"):
        check_inputs(["memry://bucket"])
    with pytest.raises(UserError, match="install"):
        check_inputs(["s3://bucket/a.webm"])


def test_large_files_are_read_lazily(
    tiny_bundle: Bundle, clips: list[Path], bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = tar_of(tmp_path / "a.tar", {clip.name: clip.read_bytes() for clip in clips})
    expected = rows_of(tiny_bundle, list(discover([str(clip) for clip in clips])))
    monkeypatch.setattr(readahead, "LARGE", 100)
    assert rows_of(tiny_bundle, list(discover([str(tar)]))) == expected
    assert rows_of(tiny_bundle, list(discover([bucket]))) == expected


def test_score_command_accepts_a_url(tiny_bundle: Bundle, clips: list[Path], tmp_path: Path) -> None:
    tar = tar_of(tmp_path / "a.tar", {clip.name: clip.read_bytes() for clip in clips})
    places = f"file://{clips[0].parent}", tar
    done = ssv2rt("score", *places, "--out", "p.csv", "--engine", tiny_bundle.path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p.csv").read_text().count("\n") == 1 + 80 + len(clips)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_byte_range_behaves_like_a_file(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = data.draw(st.binary(max_size=200))
    path = tmp_path_factory.mktemp("s") / "f"
    path.write_bytes(content)
    start = data.draw(st.integers(0, len(content)))
    size = data.draw(st.integers(0, len(content) - start))
    stretch, plain = ByteRange(str(path), start, size), io.BytesIO(content[start : start + size])
    assert stretch.read_bytes() == plain.getvalue() and stretch.length() == size
    with stretch.open() as file:
        for _ in range(data.draw(st.integers(0, 8))):
            if data.draw(st.booleans()):
                amount = data.draw(st.integers(-1, 250))
                assert file.read(amount) == plain.read(amount)
            else:
                to, whence = data.draw(st.integers(0, 250)), data.draw(st.sampled_from([os.SEEK_SET, os.SEEK_END]))
                assert file.seek(to, whence) == plain.seek(to, whence)


def test_byte_range_can_be_decoded(clips: list[Path], tmp_path: Path) -> None:
    content = clips[0].read_bytes()
    (tmp_path / "f").write_bytes(b"x" * 77 + content + b"y" * 999)
    stretch = ByteRange(str(tmp_path / "f"), 77, len(content))
    assert probe(stretch) == probe(clips[0])
    with pytest.raises(BadVideo, match="missing"):
        open_video(ByteRange(str(tmp_path / "gone"), 5, 5))


def test_url_that_goes_offline_ends_the_run(clips: list[Path]) -> None:
    system = fsspec.filesystem("memory")
    system.pipe("/gone/a.webm", clips[0].read_bytes())
    storage = StorageWatch(["memory://gone"])
    storage.check_inputs()
    system.rm("/gone", recursive=True)
    with pytest.raises(UserError, match="'memory://gone' cannot be reached any more"):
        storage.check([named_row("memory://gone/a.webm", {"status": "error: missing"})])
