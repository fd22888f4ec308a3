"""Downloading of weights: from a server on this machine, whole, damaged, cut, and not at all."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ssv2rt.core.errors import UserError
from ssv2rt.published.catalog import PUBLISHED, WeightsFile
from ssv2rt.published.download import downloaded, fetch, weights_folder
from tests.published.server import Site, publisher

CONTENT = b"PK" + random.Random(0).randbytes(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("SSV2RT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with publisher() as site:
        site.content = CONTENT
        yield site


def weights_at(site: Site, sha256: str = "") -> WeightsFile:
    return replace(PUBLISHED["r3d_18"], url=f"{site.url}/models/r3d_18.pth", sha256=sha256)


def refused(weights: WeightsFile) -> str:
    """The message of a download that fails. Nothing but what a next one can use stays behind."""
    with pytest.raises(UserError) as caught:
        fetch(weights)
    assert "\n" not in str(caught.value) and downloaded(weights) is None
    assert {file.name for file in weights_folder().iterdir()} <= {".r3d_18.pth.part", ".r3d_18.pth.version"}
    return str(caught.value)


@pytest.mark.parametrize("published", [DIGEST, DIGEST[:8], ""])
def test_a_file_is_downloaded_once(site: Site, published: str) -> None:
    weights = weights_at(site, published)
    assert downloaded(weights) is None
    path, digest = fetch(weights)
    assert path.read_bytes() == CONTENT and digest == DIGEST and downloaded(weights) == path
    assert fetch(weights) == (path, DIGEST) and site.asked == [""]
    record = [] if published else ["r3d_18.pth.sha256"]
    assert sorted(file.name for file in weights_folder().iterdir()) == ["r3d_18.pth", *record]


def test_a_file_of_torch_hub_is_used(site: Site, tmp_path: Path) -> None:
    weights = weights_at(site, DIGEST[:8])
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (hub / "r3d_18.pth").write_bytes(CONTENT)
    assert fetch(weights) == (hub / "r3d_18.pth", DIGEST) and not site.asked


def test_another_file_than_the_published_one_is_refused(site: Site) -> None:
    said = refused(weights_at(site, "b3b3357e"))
    assert DIGEST[:16] in said and "b3b3357e is published" in said
    assert not list(weights_folder().iterdir())


def test_a_file_that_changed_since_its_first_download_is_refused(site: Site) -> None:
    weights = weights_at(site)
    path, _ = fetch(weights)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match="is recorded of the first one: it is damaged or another file; remove it"):
        fetch(weights)
    path.unlink()
    site.content = CONTENT[:-1]
    with pytest.raises(UserError, match="is recorded of the first one: the file was damaged on its way or has been"):
        fetch(weights)
    site.content = CONTENT
    assert fetch(weights) == (path, DIGEST)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\n <!DOCTYPE html><p>Rate limit", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"", "an empty file"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(site: Site, content: bytes, what: str) -> None:
    site.content = content
    assert f"is {what}, and no file of weights" in refused(weights_at(site, "b3b3357e"))
    assert not list(weights_folder().iterdir())


@pytest.mark.parametrize("status", [403, 404, 503])
def test_an_error_of_the_server_says_what_to_get_by_other_means(site: Site, status: int) -> None:
    site.status = status
    said = refused(weights_at(site))
    assert f"(HTTP {status} " in said and f"get {site.url}/models/r3d_18.pth by other means" in said
    assert "or `ssv2rt import r3d_18.pth`" in said and str(weights_folder()) in said


def test_no_connection_says_what_to_get_by_other_means(site: Site) -> None:
    with publisher() as gone:
        pass
    said = refused(weights_at(gone))
    assert "cannot download 'r3d_18' ([Errno 111] Connection refused); get http://127.0.0.1" in said
    unknown = replace(weights_at(site), url="http://weights.invalid/r3d_18.pth")
    assert "get http://weights.invalid/r3d_18.pth by other means" in refused(unknown)


def test_a_download_that_was_cut_continues(site: Site) -> None:
    weights, site.cut = weights_at(site, DIGEST), 2_000_000
    assert f"lost after 2000000 of {len(CONTENT)} bytes; repeat it to continue" in refused(weights)
    path, digest = fetch(weights)
    assert digest == DIGEST and site.asked == ["", "bytes=2000000-"]
    assert [file.name for file in weights_folder().iterdir()] == [path.name]


@pytest.mark.parametrize("tag", ['"v2"', ""])
def test_a_download_begins_anew_if_the_file_is_another_by_then(site: Site, tag: str) -> None:
    weights, site.cut, site.tag = weights_at(site, DIGEST), 2_000_000, tag and '"v1"'
    site.content = bytes(len(CONTENT))
    refused(weights)
    site.content, site.tag, site.cut = CONTENT, tag, None
    assert fetch(weights)[1] == DIGEST and site.asked == ["", "bytes=2000000-" if tag else ""]


def test_a_complete_download_that_was_not_renamed_is_taken_up(site: Site) -> None:
    weights = weights_at(site, DIGEST)
    weights_folder().mkdir(parents=True)
    (weights_folder() / ".r3d_18.pth.part").write_bytes(CONTENT)
    (weights_folder() / ".r3d_18.pth.version").write_text(site.tag)
    assert fetch(weights)[1] == DIGEST and site.asked == [f"bytes={len(CONTENT)}-", ""]


def test_a_cache_that_cannot_be_written_is_one_line(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SSV2RT_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot keep 'r3d_18\.pth' in .*set SSV2RT_CACHE to another folder") as caught:
        fetch(weights_at(site))
    assert "\n" not in str(caught.value) and not site.asked
