"""Training: learning rate schedule, gradient accumulation, checkpoints, bad data, and invalid settings."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from ssv2rt.core.errors import UserError
from ssv2rt.core.recipe_files import load_recipe
from ssv2rt.core.recipes import Recipe, Train
from ssv2rt.core.run_folders import Run, create_run, find_run
from ssv2rt.dataset.index import open_manifest
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.models.weights import WEIGHTS, load_trained
from ssv2rt.pipelines.samplers import train_batches
from ssv2rt.training.check_setup import check_compiler
from ssv2rt.training.determinism import explain_determinism_errors
from ssv2rt.training.distributed import Group
from ssv2rt.training.evaluate import evaluate
from ssv2rt.training.metrics_log import read_metrics
from ssv2rt.training.optimizer import build_optimizer, learning_rate
from ssv2rt.training.trainer import Trainer
from tests.conftest import TINY_SETTINGS

CPU = torch.device("cpu")


@pytest.fixture
def manifest(tiny_set: Path) -> Manifest:
    return open_manifest(tiny_set)


def recipe(*overrides: str) -> Recipe:
    return load_recipe("ssv2-resnet3d18", (*TINY_SETTINGS, *overrides))


def trainer(manifest: Manifest, *overrides: str) -> Trainer:
    return Trainer(recipe(*overrides), manifest)


@given(st.integers(1, 10_000), st.integers(0, 10_000), st.floats(1e-6, 10))
def test_the_learning_rate_warms_up_to_its_peak_and_decays(steps: int, warmup: int, peak: float) -> None:
    warmup = min(warmup, steps)
    rates = [learning_rate(step, steps=steps, warmup=warmup, peak=peak) for step in range(steps)]
    assert all(0 <= rate <= peak * (1 + 1e-9) for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert max(rates) == pytest.approx(peak)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_biases_and_norms_get_no_weight_decay(name: str, manifest: Manifest, tmp_path: Path) -> None:
    model = trainer(manifest).model
    optimizer = build_optimizer(model, Train(optimizer=name, weight_decay=0.3))  # type: ignore[arg-type]
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name_of, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.3 if parameter.ndim > 1 else 0.0), name_of


def test_a_run_has_all_documented_files(tiny_run: Run) -> None:
    files = {str(p.relative_to(tiny_run.path)) for p in tiny_run.path.rglob("*")}
    assert {"recipe.toml", "environment.json", "metrics.jsonl", "checkpoints/last", "checkpoints/best"} <= files
    line = json.loads(tiny_run.metrics_file.read_text().splitlines()[0])
    assert line["epoch"] == 1 and {"top1", "top5", "loss"} <= line["validation"].keys()
    assert json.loads((tiny_run.path / "environment.json").read_text())["versions"]["torch"]
    weights = tiny_run.checkpoints / "best" / WEIGHTS
    with safe_open(weights, "pt") as file:
        assert len(json.loads(file.metadata()["labels"])) == 10
    torch.load(tiny_run.checkpoints / "last" / "state.pt", weights_only=True)


def test_a_checkpoint_restores_the_evaluated_model(tiny_run: Run, manifest: Manifest) -> None:
    trained = load_trained(tiny_run)
    again = evaluate(
        trained.model.channels_last(), manifest.split("validation"), trained.recipe, device=CPU, precision="fp32"
    )
    logged = json.loads(tiny_run.metrics_file.read_text().splitlines()[-1])["validation"]
    assert again.top1 == logged["top1"] and again.loss == pytest.approx(logged["loss"], rel=1e-4)
    assert again.clips == 10 and again.bad == 0


def test_only_the_best_and_last_checkpoints_are_kept(manifest: Manifest, tmp_path: Path) -> None:
    work = trainer(manifest, "train.epochs=3")
    run = create_run("t", root=tmp_path)
    work.fit(run)
    folders = {p.name for p in run.checkpoints.iterdir() if not p.is_symlink()}
    pointers = {p.name: p.resolve().name for p in run.checkpoints.iterdir() if p.is_symlink()}
    assert pointers["last"] == "epoch-0003" and folders == set(pointers.values())
    assert sum("validation" in line for line in read_metrics(run.metrics_file)) == 3


def test_training_with_the_recipe_of_a_run_reproduces_its_weights(
    tiny_run: Run, manifest: Manifest, tmp_path: Path
) -> None:
    again = create_run("again", root=tmp_path)
    Trainer(tiny_run.recipe(), manifest).fit(again)
    first, second = load_trained(tiny_run, "last"), load_trained(again, "last")
    for (name, a), b in zip(first.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_accumulated_gradients_equal_those_of_the_large_batch(manifest: Manifest, tmp_path: Path) -> None:
    """In eval mode, since batch norm statistics depend on the batch size."""
    gradients = []
    for size, steps in [(8, 1), (4, 2), (2, 4)]:
        work = trainer(manifest, f"train.batch_size={size}", f"train.accumulate={steps}")
        work.model.eval()
        batches = work.loader.batches(train_batches(work.train_split, work.recipe, epoch=1))
        for step, batch in zip(range(steps), batches, strict=False):
            work.training_step.backward(batch.clips, batch.labels, epoch=1, step=step, last=step == steps - 1)
        gradients.append(torch.cat([p.grad.flatten() for p in work.model.parameters() if p.grad is not None]))
    for other in gradients[1:]:
        assert torch.allclose(gradients[0], other, atol=1e-4 * gradients[0].abs().max().item())


def test_a_nan_loss_stops_before_the_weights_change(manifest: Manifest, tmp_path: Path) -> None:
    work = trainer(manifest)
    run = create_run("t", root=tmp_path)
    with torch.no_grad():
        work.model.head.bias[0] = float("nan")
    before = {name: tensor.clone() for name, tensor in work.model.named_parameters()}
    with pytest.raises(UserError, match=r"loss is nan at epoch 1, step 0"):
        work.fit(run)
    for name, tensor in work.model.named_parameters():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()), name
    assert not run.checkpoints.exists()


def test_divergence_ends_with_a_one_line_error(manifest: Manifest, tmp_path: Path) -> None:
    work = trainer(manifest, "train.learning_rate=1e30", "train.epochs=3", "train.optimizer=sgd")
    with pytest.raises(UserError, match=r"lower train.learning_rate"):
        work.fit(create_run("t", root=tmp_path))


def test_a_failed_run_does_not_become_the_latest(manifest: Manifest, tmp_path: Path) -> None:
    good = create_run("good", root=tmp_path)
    trainer(manifest).fit(good)
    with pytest.raises(UserError, match="training stopped without saving this step"):
        trainer(manifest, "train.learning_rate=1e30", "train.epochs=3").fit(create_run("bad", root=tmp_path))
    assert find_run(root=tmp_path).path == good.path


def test_data_without_labels_or_with_one_class_is_rejected(manifest: Manifest) -> None:
    from dataclasses import replace

    with pytest.raises(UserError, match="training needs at least two"):
        Trainer(recipe(), replace(manifest, labels=("one",)))
    table = manifest.table.set_column(3, "label", [np.full(len(manifest.table), -1, np.int32)])
    with pytest.raises(UserError, match="have no label"):
        Trainer(recipe(), replace(manifest, table=table))


def test_too_few_clips_for_an_optimizer_step_are_rejected(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"60 training clips do not fill one update of 8 x 8"):
        trainer(manifest, "train.accumulate=8")


def test_bad_clips_are_skipped_up_to_the_limit(
    tmp_path: Path, tiny_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    data = tmp_path / "data"
    shutil.copytree(tiny_set, data)
    manifest = open_manifest(data)
    split = manifest.split("train")
    for row in range(2):
        split.path(row).write_bytes(b"no longer a video")
    work = trainer(manifest, "data.max_bad=0.1", "train.batch_size=10")
    work.fit(create_run("t", root=tmp_path))
    assert work.bad == 2
    assert capsys.readouterr().err.count("unreadable") == 2
    for row in range(2, 20):
        split.path(row).write_bytes(b"no longer a video")
    with pytest.raises(UserError, match="more than data.max_bad = 0.1 allows"):
        trainer(manifest, "data.max_bad=0.1", "train.batch_size=10").fit(create_run("t", root=tmp_path))


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_training_works_in_each_precision(precision: str, manifest: Manifest, tmp_path: Path) -> None:
    result = trainer(manifest, f"train.precision={precision}").fit(create_run("t", root=tmp_path))
    assert result.clips == 10


@pytest.mark.gpu
def test_training_works_in_fp16_on_a_gpu(manifest: Manifest, tmp_path: Path) -> None:
    assert trainer(manifest, "train.precision=fp16").fit(create_run("t", root=tmp_path)).clips == 10


@pytest.mark.gpu
def test_deterministic_training_on_a_gpu_is_reproducible(manifest: Manifest, tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        work = trainer(manifest, "train.deterministic=true")
        work.fit(create_run(name, root=tmp_path))
        runs.append(work.model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(runs[0].values(), runs[1].values(), strict=True))


def test_deterministic_mode_is_switched_on_and_off(manifest: Manifest) -> None:
    trainer(manifest, "train.deterministic=true")
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    trainer(manifest)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_layer_without_a_deterministic_algorithm_is_named(manifest: Manifest) -> None:
    trainer(manifest, "train.deterministic=true")
    with (
        pytest.raises(UserError, match="'put_', which i3d needs, has no deterministic algorithm"),
        explain_determinism_errors("i3d"),
    ):
        torch.zeros(2).put_(torch.tensor([0]), torch.tensor([1.0]), accumulate=False)
    with (
        pytest.raises(UserError, match="CUBLAS_WORKSPACE_CONFIG=:4096:8 before it starts"),
        explain_determinism_errors("i3d"),
    ):  # as PyTorch says it on a GPU
        raise RuntimeError("... `torch.use_deterministic_algorithms(True)` ... CUBLAS_WORKSPACE_CONFIG=:4096:8 ...")
    with (
        pytest.raises(UserError, match="cuDNN has no deterministic algorithm for a convolution of i3d"),
        explain_determinism_errors("i3d"),
    ):
        raise RuntimeError("GET was unable to find an engine to execute this computation")
    trainer(manifest)
    with pytest.raises(RuntimeError, match="size mismatch"), explain_determinism_errors("i3d"):
        torch.zeros(2, 2) @ torch.zeros(3)


@pytest.mark.slow
def test_a_compiled_network_trains_like_the_eager_one(manifest: Manifest, tmp_path: Path) -> None:
    losses = []
    for name in ("false", "true"):
        run = create_run(name, root=tmp_path)
        trainer(manifest, f"train.compile={name}", "train.log_every=1", "train.learning_rate=0.001").fit(run)
        losses.append([line["loss"] for line in read_metrics(run.metrics_file) if "loss" in line])
    assert len(losses[0]) == 8 and losses[1][:3] == pytest.approx(losses[0][:3], rel=1e-4)
    assert load_trained(find_run(str(run.path))).labels == manifest.labels


def test_compile_without_a_compiler_is_rejected(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"train\.compile = true needs a C\+\+ compiler"):
        trainer(manifest, "train.compile=true")
    monkeypatch.delenv("CC", raising=False)
    gpu = Group(0, 1, torch.device("cuda", 0))
    with pytest.raises(UserError, match=r"train\.compile = true needs a C compiler, and 'gcc' is not installed"):
        check_compiler(gpu)
    monkeypatch.undo()
    monkeypatch.setattr("sysconfig.get_path", lambda name: "/nowhere")
    with pytest.raises(UserError, match="needs '/nowhere/Python.h' on a GPU; install python3-dev"):
        check_compiler(gpu)


def test_damaged_and_foreign_checkpoints_are_rejected(tiny_run: Run, tmp_path: Path) -> None:
    import shutil

    run = Run(tmp_path / "run")
    shutil.copytree(tiny_run.path, run.path, symlinks=True)
    weights = run.checkpoints / "best" / WEIGHTS
    data = weights.read_bytes()
    weights.write_bytes(data[:100])
    with pytest.raises(UserError, match="not a checkpoint of ssv2rt, or damaged"):
        load_trained(run)
    weights.write_bytes(data)
    run.recipe_file.write_text(run.recipe_file.read_text().replace("width = 4", "width = 8"))
    with pytest.raises(UserError, match="model.width was 4, and is 8; change it back"):
        load_trained(run)
    with pytest.raises(UserError, match="no 'best' checkpoint yet"):
        load_trained(Run(tmp_path / "none"))
