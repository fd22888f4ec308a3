"""The `ssv2rt` command. Each command imports what it needs when it runs, so that --help is instant."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import click

from ssv2rt import __version__
from ssv2rt.errors import UsageError, UserError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="ssv2rt")
def app() -> None:
    """Train 3D-convolution action models on Something-Something V2, and score folders of videos with them."""


@app.command()
@click.argument("recipe", required=False)
@click.option("--data", type=click.Path(path_type=Path), help="Folder with SSv2's JSON files and videos/.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting: train.epochs=10.")
@click.option("--name", default="", help="Name of the run directory. Default: recipe and time.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def train(recipe: str | None, data: Path | None, overrides: tuple[str, ...], name: str, as_json: bool) -> None:
    """Train a model. Without arguments: the `demo` recipe on synthetic clips."""
    from ssv2rt.dataset.prepare import offer_test_videos, prepare, with_root
    from ssv2rt.recipes import load_recipe
    from ssv2rt.runs import create_run
    from ssv2rt.training.trainer import Trainer

    recipe = recipe or ("ssv2-resnet3d18" if data else "demo")
    settings = load_recipe(recipe, overrides)
    settings = settings.model_copy(update={"data": with_root(settings.data, data)})
    manifest = prepare(settings.data)
    trainer = Trainer(settings, manifest)
    path = Path(recipe)  # the recipe of a run is called like the run
    run = create_run(path.parent.name if path.name == "recipe.toml" else path.stem, name)
    result = trainer.fit(run)
    if settings.data.synthetic and settings.data.test_videos:
        offer_test_videos(manifest, Path(settings.data.test_videos))
    _print({"run": str(run.path), **result.as_dict()}, as_json)


@app.command()
@click.argument("run", required=False)
@click.option("--split", type=click.Choice(["validation", "test", "train"]), default="validation", show_default=True)
@click.option("--data", type=click.Path(path_type=Path), help="Another data set than the run's own.")
@click.option("--checkpoint", type=click.Choice(["best", "last"]), default="best", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def evaluate(run: str | None, split: str, data: Path | None, checkpoint: str, as_json: bool) -> None:
    """Evaluate a run's model: top-1, top-5 and loss. Default: the newest run."""
    from ssv2rt.dataset.prepare import prepare, with_root
    from ssv2rt.hardware import choose_device, choose_precision
    from ssv2rt.models.weights import load_trained
    from ssv2rt.runs import find_run
    from ssv2rt.training.evaluate import evaluate as evaluate_split

    where = find_run(run)
    trained = load_trained(where, checkpoint)
    manifest = prepare(with_root(trained.recipe.data, data))
    if manifest.labels != trained.labels:
        raise UserError(
            f"the classes of '{manifest.folder}' are not those of run '{where.path}'; give it the right --data"
        )
    device = choose_device()
    result = evaluate_split(
        trained.model.channels_last().to(device),
        manifest.split(split, trained.recipe.data.max_bad),
        trained.recipe,
        device=device,
        precision=choose_precision(trained.recipe.train.precision, device),
    )
    _print({"run": str(where.path), "epoch": trained.epoch, "split": split, **result.as_dict()}, as_json)


@app.command("build-engine")
@click.argument("run", required=False)
@click.option("--fp32", "precision", flag_value="fp32", help="Exact to rounding.")
@click.option("--fp16", "precision", flag_value="fp16", help="Half precision (the default).")
@click.option("--int8", "precision", flag_value="int8", help="8-bit integers, calibrated on training clips.")
@click.option("--recipe", help="Engine recipe, by name or path. Default: the one named like the precision.")
@click.option("--backend", default="auto", show_default=True, help="auto, tensorrt, tensorrt-rtx or openvino.")
@click.option("--target", "targets", multiple=True, help="tensorrt-rtx: GPU architecture to build for, such as sm89.")
@click.option("--data", type=click.Path(path_type=Path), help="Another place of the run's data set.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting: gate.clips=50.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def build_engine(
    run: str | None,
    precision: str | None,
    recipe: str | None,
    backend: str,
    targets: tuple[str, ...],
    data: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Build an engine of a run's best checkpoint, and compare it with PyTorch. Default: the newest run."""
    from ssv2rt.dataset.prepare import prepare, with_root
    from ssv2rt.engines.backends import NAMES, choose_backend
    from ssv2rt.engines.build import build_engine as build
    from ssv2rt.recipes import load_engine_recipe
    from ssv2rt.runs import find_run

    if backend not in ("auto", *NAMES):
        raise UsageError(f"--backend {backend}: there are auto, {', '.join(NAMES)}")
    where = find_run(run)
    if precision:
        overrides = (f"engine.precision={precision}", *overrides)
    if targets:
        overrides = (*overrides, f"engine.targets={json.dumps(targets)}")
    settings = load_engine_recipe(recipe or precision or "fp16", overrides)
    manifest = prepare(with_root(where.recipe().data, data))
    bundle, failures = build(where, settings, choose_backend() if backend == "auto" else backend, manifest)
    info = bundle.info
    verification = info.verification or {}
    facts = {
        "engine": str(bundle.path),
        "backend": f"{info.backend} {info.backend_version}",
        "compared by": verification["by"],
        "clips": verification["clips"],
        "agreement": verification["agreement"],
        "top-1, PyTorch": verification["top1_model"],
        "top-1, engine": verification["top1_engine"],
    }
    _print(info.model_dump(mode="json") if as_json else facts, as_json)
    if failures:
        raise UserError(f"the engine is not good enough, and kept apart in '{bundle.path}': {'; '.join(failures)}")


@app.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Predictions: .csv, .parquet or .jsonl.")
@click.option("--engine", type=click.Path(path_type=Path), help="A bundle. Default: the newest of the newest run.")
@click.option("--run", help="The run whose newest engine is used.")
@click.option("--top-k", type=click.IntRange(min=1), help="Labels per video. Default: 5.")
@click.option("--threads", type=click.IntRange(min=1, max=1024), help="Decoding threads. Default: one a core.")
@click.option("--overwrite", is_flag=True, help="Replace the output file.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def score(
    inputs: tuple[str, ...],
    out: Path,
    engine: Path | None,
    run: str | None,
    top_k: int | None,
    threads: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Score videos: files, and folders with all below them. One row each, whatever happens."""
    from ssv2rt.scoring.discover import discover
    from ssv2rt.scoring.sinks import check_output, open_sink

    check_output(out, overwrite=overwrite)
    videos = list(discover(inputs))

    from ssv2rt.engines.bundle import find_bundle, open_bundle
    from ssv2rt.recipes import Data
    from ssv2rt.runs import find_run
    from ssv2rt.scoring.scorer import Scorer

    bundle = open_bundle(engine if engine else find_bundle(find_run(run)))
    classes = len(bundle.info.labels)
    if top_k and top_k > classes:
        raise UsageError(f"--top-k {top_k}: the engine has {classes} classes; take at most that")
    top_k = top_k or min(5, classes)
    scorer = Scorer(bundle, top_k=top_k, data=Data(threads=threads or 0))
    with open_sink(out, top_k) as sink:
        summary = scorer.score(videos, sink, total=len(videos))
    _print({"out": str(out), "engine": str(bundle.path), "videos": summary.videos, "errors": summary.errors}, as_json)
    if summary.errors:
        sys.exit(3)


@app.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The manifest. Default: manifest.parquet beside the data.")
@click.option("--decode", is_flag=True, help="Also decode every frame: finds damage that headers do not show.")
@click.option("--workers", type=click.IntRange(1, 1024), help="Processes. Default: one a core; more for slow storage.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def index(data: Path, out: Path | None, decode: bool, workers: int | None, as_json: bool) -> None:
    """Look at every clip of a data set once: what it is, and what is wrong with it.

    DATA is SSv2's folder, a folder with one for each class, or a .csv or .parquet table with the columns path and label.
    """
    from ssv2rt.console import Progress
    from ssv2rt.dataset.index import index as look_at_all
    from ssv2rt.dataset.summary import show, summarise

    with Progress(f"indexing {data}") as progress:
        manifest, where = look_at_all(data, out=out, decode=decode, workers=workers or 0, progress=progress.show)
    summary = summarise(manifest, where)
    if as_json:
        click.echo(json.dumps(summary))
    else:
        show(summary)


@app.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--clips", default=1000, show_default=True, help="In all three splits together; even.")
@click.option("--size", default="427x240", show_default=True, help="WIDTHxHEIGHT in pixels.")
@click.option("--frames", default="24-60", show_default=True, help="Fewest and most frames of a clip.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--key-frames",
    type=click.Choice(["all", "first"]),
    default="all",
    show_default=True,
    help="all: twins share their frames to the last bit. first: coded like SSv2.",
)
def synthesize(out: Path, clips: int, size: str, frames: str, seed: int, key_frames: str) -> None:
    """Make a synthetic data set of time-reversed twins, in SSv2's layout."""
    from ssv2rt.console import Progress
    from ssv2rt.dataset.synthetic import synthesize as write
    from ssv2rt.recipes import Synthetic, validated

    width, height = _two_numbers(size, "x", "--size", "427x240")
    fewest, most = _two_numbers(frames, "-", "--frames", "24-60")
    spec = validated(
        Synthetic, {"clips": clips, "width": width, "height": height, "frames": (fewest, most), "seed": seed}
    )
    with Progress(f"making {out}", spec.clips) as progress:
        write(out, spec, key_frames="first" if key_frames == "first" else "all", progress=progress.add)
    _print({"data": str(out), "clips": spec.clips, "try": f"ssv2rt train --data {out}"}, False)


@app.command()
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def doctor(as_json: bool) -> None:
    """Say what this machine has, what will therefore be used, and what to install for more."""
    from ssv2rt.doctor import examine, show

    facts = examine()
    if as_json:
        click.echo(json.dumps(facts.as_dict(), indent=2))
    else:
        show(facts)


def _two_numbers(text: str, separator: str, option: str, example: str) -> tuple[int, int]:
    first, _, second = text.partition(separator)
    try:
        return int(first), int(second)
    except ValueError:
        raise UsageError(f"{option} {text}: write it like {example}") from None


def _print(facts: dict[str, object], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(facts))
        return
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        click.echo(f"{key:{width}}  {value:.2f}" if isinstance(value, float) else f"{key:{width}}  {value}")


def main() -> None:
    """Runs the command; a user's error is one line, and the exit code says what kind it was."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app(standalone_mode=False)
    except click.exceptions.Abort:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except UserError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _fail(message: str, code: int) -> None:
    """Ends the command with one line, whatever a file's name or a library's message holds."""
    line = " ".join(message.splitlines()).encode("utf-8", "backslashreplace").decode()
    print(f"Error: {line}", file=sys.stderr)
    sys.exit(code)


def _terminate(number: int, frame: object) -> None:
    """SIGTERM ends the command as an error would: what is half done is cleared away."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends it at once
    print("terminated", file=sys.stderr)
    sys.exit(128 + number)
