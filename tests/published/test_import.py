"""`ssv2rt import`: a run from published weights, which the other commands take; and everything that is no such file."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ssv2rt.core.errors import UserError
from ssv2rt.core.recipes import Clip, Model, Recipe
from ssv2rt.core.run_folders import RUNS, Run, find_run
from ssv2rt.models.clip_model import KINETICS_MEAN, KINETICS_STD
from ssv2rt.models.registry import build_model
from ssv2rt.models.weights import load_trained
from ssv2rt.published.catalog import PUBLISHED, class_names
from ssv2rt.published.download import sha256_of
from ssv2rt.published.import_run import RunSource, make_run, read_source
from ssv2rt.published.load import start_from
from tests.cli import Done, ssv2rt
from tests.conftest import numbered_video
from tests.faults import FAULTS, largest_file
from tests.models.reference import State, features_video, random_state, shapes_video
from tests.published.server import Site, publisher

ENTRY = PUBLISHED["mc3_18"]
"""The smallest of the published networks."""


@pytest.fixture(scope="module")
def state() -> State:
    return random_state(shapes_video("mc3_18"))


@pytest.fixture(scope="module")
def weights(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights, as torchvision saves them, under another name."""
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(state, path)
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and an empty cache."""
    monkeypatch.setenv("SSV2RT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "place").mkdir()
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


@pytest.fixture
def site(weights: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server that has the weights, to which the catalog's addresses lead."""
    with publisher() as site:
        site.content = weights.read_bytes()
        here = replace(ENTRY, url=f"{site.url}/{ENTRY.file}", sha256=sha256_of(weights)[:8])
        monkeypatch.setitem(PUBLISHED, "mc3_18", here)
        yield site


def refusal(*words: object, code: int = 1) -> str:
    """The one line that an import is refused with. It leaves no run."""
    before = sorted(RUNS.rglob("*"))
    done = ssv2rt("import", *words)
    said = done.stderr.splitlines()
    assert done.returncode == code and not done.stdout and "Traceback" not in done.stderr, done
    assert len(said) == 1 and said[0].startswith("Error: ") and sorted(RUNS.rglob("*")) == before, done
    return said[0]


def imported(*words: object) -> tuple[Run, Done]:
    done = ssv2rt("import", *words)
    assert done.returncode == 0, done
    return find_run(), done


def test_a_name_becomes_the_newest_run(site: Site, state: State, weights: Path) -> None:
    run, done = imported("mc3_18", "--json")
    facts = json.loads(done.stdout)
    assert facts["run"] == str(run.path) and run.name.startswith("mc3_18-") and facts["top-1, published"] == 63.96
    trained = load_trained(run)
    assert trained.labels == class_names("kinetics400") and trained.recipe == run.recipe() and trained.epoch == 0
    assert trained.recipe.clip == ENTRY.clip and trained.recipe.model.name == "mc3_18" and not trained.recipe.data.root
    source = json.loads(run.source_file.read_text())
    assert source["sha256"] == sha256_of(weights) and source["published"]["license"] == "BSD-3-Clause"
    assert source["published"]["url"].startswith(site.url) and source["published"]["top1"] == 63.96
    assert load_trained(run, "last").path.samefile(trained.path)
    clips = torch.randint(0, 256, (1, 2, 32, 32, 3), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1, 1) for v in (KINETICS_MEAN, KINETICS_STD))
    expected = features_video("mc3_18", state, (clips.permute(0, 4, 1, 2, 3) - mean) / std)
    expected = expected @ state["fc.weight"].T + state["fc.bias"]
    with torch.inference_mode():
        assert (trained.model(clips) - expected).abs().max() < 1e-4 * expected.std()
    second, _ = imported("mc3_18", "--name", "second")
    assert second.path == RUNS / "second" and site.asked == [""]


def test_a_file_is_told_by_its_weights(place: Path, weights: Path) -> None:
    run, done = imported(weights)
    source = json.loads(run.source_file.read_text())
    assert run.name.startswith("mc3_18-") and load_trained(run).labels == class_names("kinetics400")
    assert source["network"] == "mc3_18" and source["published"] is None and source["file"] == "weights.pth"
    assert "is not known to be the published file" in done.stderr


def test_a_published_file_is_told_by_its_hash(site: Site, weights: Path) -> None:
    run, _ = imported(weights)
    source = read_source(run)
    assert source and source.published and source.published.name == "mc3_18" and not site.asked


def test_a_file_with_a_published_name_has_the_published_hash(place: Path, weights: Path) -> None:
    shutil.copy(weights, ENTRY.file)
    said = refusal(ENTRY.file)
    assert f"has the SHA-256 {sha256_of(weights)[:16]}..., and a90a0ba3 is published" in said and "--as mc3_18" in said
    run, _ = imported(ENTRY.file, "--as", "mc3_18")
    assert json.loads(run.source_file.read_text())["published"] is None


def test_training_starts_from_an_imported_run_and_from_a_name(site: Site, place: Path) -> None:
    run, _ = imported("mc3_18", "--name", "mc3")
    resumed = ssv2rt("train", "--resume", "mc3")
    assert resumed.returncode == 1 and "was imported, and has no optimizer state to continue with" in resumed.stderr
    assert "ssv2rt train runs/mc3/recipe.toml --init mc3 --data DIR" in resumed.stderr
    weights = load_trained(run).model.state_dict()
    for source in ("mc3", "mc3_18", str(place.parent / "cache" / "weights" / ENTRY.file)):
        model = build_model(ENTRY.model, 3)
        report = start_from(model, source, labels=("zumba", "juggling", "archery"))
        assert "2 of 3 classes are taken over by name" in report.classes and not report.missing
        found = model.state_dict()
        kept = [name for name in weights if not name.startswith("head.") and not name.endswith("num_batches_tracked")]
        assert all(torch.equal(found[name], weights[name]) for name in kept)
        rows = [class_names("kinetics400").index(name) for name in ("zumba", "archery")]
        assert torch.equal(found["head.weight"][[0, 2]], weights["head.weight"][rows])
    with pytest.raises(UserError, match="no file, no run and no published network 'mc3_81'; did you mean 'mc3_18'"):
        start_from(model, "mc3_81")


def test_a_run_with_the_classes_of_ones_own_weights(place: Path, state: State, tiny_run: Run) -> None:
    names = load_trained(tiny_run).labels
    torch.save(state | {"fc.weight": state["fc.weight"][:10], "fc.bias": state["fc.bias"][:10]}, "own.pth")
    assert "'own.pth' has 10 classes, and Kinetics-400 has 400; give the names of its" in refusal("own.pth")
    Path("nine.txt").write_text("\n".join(names[:9]))
    assert "nine.txt names 9 classes, and 'own.pth' has 10" in refusal("own.pth", "--labels", "nine.txt")
    Path("names.txt").write_text("\n".join(names))
    run, _ = imported("own.pth", "--labels", "names.txt")
    assert load_trained(run).labels == names


def test_a_checkpoint_of_another_run_becomes_a_run(place: Path, tiny_run: Run) -> None:
    trained = load_trained(tiny_run)
    shutil.copy(trained.path, "theirs.safetensors")
    run, _ = imported("theirs.safetensors", "--name", "theirs")
    again = load_trained(run)
    assert again.labels == trained.labels and again.recipe.clip == trained.recipe.clip and not again.recipe.data.root
    weights = trained.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in again.model.state_dict().items())
    source = read_source(run)
    assert source and source.network == "resnet3d18" and source.published is None
    Path("names.txt").write_text("one\ntwo\n")
    assert "names.txt names 2 classes, and 'theirs.safetensors' has 10" in refusal(
        "theirs.safetensors", "--labels", "names.txt"
    )


def test_a_file_with_a_published_name_and_other_classes_is_not_recorded(place: Path, state: State) -> None:
    entry = PUBLISHED["i3d-r50-ssv2"]
    torch.save(state, entry.file)
    assert f"'{entry.file}' has 400 classes, and Something-Something V2 has 174" in refusal(entry.file)
    assert not (place.parent / "cache").exists()


def test_weights_of_other_layouts_are_refused(place: Path, state: State) -> None:
    torch.save({name: value for name, value in state.items() if name != "layer3.1.conv2.0.weight"}, "gap.pth")
    assert "'gap.pth' is of none of the networks that can be imported" in refusal("gap.pth")
    assert "layer3.1.conv2.0.weight" in refusal("gap.pth", "--as", "mc3_18")
    torch.save(state | {"layer9.weight": torch.zeros(3)}, "more.pth")
    assert "layer9.weight" in refusal("more.pth", "--as", "mc3_18")
    assert "'more.pth'" in refusal("more.pth", "--as", "r3d_18")
    torch.save({"features.weight": torch.zeros(3)}, "none.pth")
    assert "'none.pth' is no ResNet: it has features.weight" in refusal("none.pth")
    torch.save({name: value for name, value in state.items() if not name.startswith("fc.")}, "headless.pth")
    assert "'headless.pth' has no classifier, and `import` needs one" in refusal("headless.pth")
    state["stem.0.weight"], before = state["stem.0.weight"] * float("nan"), state["stem.0.weight"]
    torch.save(state, "nan.pth")
    state["stem.0.weight"] = before
    assert "stem.0.weight holds values that are not finite" in refusal("nan.pth")


def test_damaged_files_are_refused(place: Path, weights: Path) -> None:
    whole = weights.read_bytes()
    for content, what in (
        (b"<html><title>Not Found</title>", "is a web page, and no file of weights"),
        (b"", "is an empty file, and no file of weights"),
        (whole[: len(whole) // 2], "not a file of weights, damaged"),
        (whole[:1000] + bytes(1000) + whole[2000:4000], "not a file of weights, damaged"),
        (pickle.dumps({"fc.weight": Run}), "not a file of weights, damaged"),
    ):
        Path("w.pth.tar").write_bytes(content)
        assert what in refusal("w.pth.tar")
    save_file({"x": torch.zeros(3)}, "w.safetensors")
    assert "is no ResNet" in refusal("w.safetensors")
    Path("w.zip").write_bytes(whole[:1000])
    assert "weights are read from" in refusal("w.zip", code=2)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("r3d_81",), "no published network 'r3d_81'; did you mean 'r3d_18'?"),
        (("resnet50",), "is a network for images; start from it with `ssv2rt train --init resnet50`"),
        (("mc3_18-a90a0ba3.pth",), "no such file; get it from https://download.pytorch.org/models/mc3_18-a90a0ba3.pth"),
        (("../gone.pth",), "no such file; give a file of weights, or one of"),
        (("folder",), "'folder': is a folder"),
        (("",), "no published network ''"),
        (("x" * 5000,), "no published network 'xxx"),
        (("a\nb",), "no published network 'a b'"),
        (("r3d_18", "--as", "r3d_18"), "--as r3d_18 is for a file, and 'r3d_18' is none"),
        (("w.pth", "--as", "mc3_81"), "no published network 'mc3_81'; did you mean 'mc3_18'?"),
        (("r3d_18", "--name", "../up"), "a run name is a plain folder name"),
        (("r3d_18", "--name", "latest"), "a run name is a plain folder name"),
    ],
)
def test_names_of_nothing_are_refused(place: Path, words: tuple[str, ...], what: str) -> None:
    Path("folder").mkdir()
    Path("w.pth").touch()
    assert what in refusal(*words, code=2)


def test_an_existing_run_is_refused_before_anything_is_read(place: Path) -> None:
    (RUNS / "here").mkdir(parents=True)
    assert "run 'runs/here' exists; choose another --name" in refusal("r3d_18", "--name", "here")
    assert "cannot read the labels 'gone.txt'" in refusal("r3d_18", "--labels", "gone.txt")


def tiny(name: str = "") -> Run:
    recipe = Recipe(model=Model(name="resnet3d18", width=4), clip=Clip(frames=4, size=32))
    source = RunSource(file="w.pth", sha256="0" * 64, imported="2026-01-31", network="tiny", published=None)
    return make_run(build_model(recipe.model, 3), recipe, ("a", "b", "c"), source, name)


def test_a_run_is_whole_or_not_there(place: Path) -> None:
    first, number, is_done = tiny("first"), 0, False
    while not is_done:
        number += 1
        with FAULTS.at(number, RUNS.absolute(), RUNS):
            try:
                is_done = bool(tiny("second"))
                continue
            except UserError as error:
                said = str(error)
        assert "No space left on device" in said and "\n" not in said
        assert [path.name for path in sorted(RUNS.iterdir())] == ["first", "latest"] and find_run() == first
    assert number > 5 and find_run().name == "second" and load_trained(find_run()).labels == ("a", "b", "c")
    with largest_file(10_000), pytest.raises(UserError, match="File too large"):
        tiny("third")
    assert [path.name for path in sorted(RUNS.iterdir())] == ["first", "latest", "second"]


def test_commands_say_what_an_imported_run_lacks(place: Path) -> None:
    tiny("one")
    Path("a.mp4").touch()
    for words, what in (
        (("inspect",), "run 'runs/one' has no engine yet; make one with `ssv2rt build-engine one --fp16`"),
        (("score", "a.mp4", "--out", "p.csv"), "run 'runs/one' has no engine yet; make one with"),
        (("evaluate",), "no data: give --data DIR"),
        (("build-engine", "--int8"), "int8 is calibrated on clips, and there is no --data; give --data DIR, or --cal"),
    ):
        done = ssv2rt(*words)
        assert done.returncode in (1, 2) and len(done.stderr.splitlines()) == 1 and what in done.stderr, done
    (row,) = json.loads(ssv2rt("runs", "--json").stdout)
    assert (row["epochs"], row["planned_epochs"], row["data"]) == (0, 0, "")
    done = ssv2rt("report", "--out", "r.html")
    assert done.returncode == 0 and not done.stderr
    page = Path("r.html").read_text()
    assert '["weights","w.pth"]' in page and "The run has no data of its own" in page and '["data",' not in page


def test_a_published_network_predicts_in_python_without_a_run(site: Site, tmp_path: Path) -> None:
    """Its weights are downloaded once."""
    import ssv2rt as package

    video = numbered_video(tmp_path / "a.webm", "libvpx-vp9", frames=20)
    one, two = (next(package.load("mc3_18").predict(video, views="1x1")) for _ in range(2))
    assert len(site.asked) == 1 and one.ok and len(one.labels) == 400
    run = package.import_weights("mc3_18")
    three = next(package.load(run).predict(video, views="1x1"))
    assert (one.logits == two.logits).all() and (one.logits == three.logits).all()
    with pytest.raises(package.UsageError, match="import it first"):
        package.load("r3d_18", engine="int8")
