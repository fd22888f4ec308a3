"""`ssv2rt benchmark`: the commands that measure throughput."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ssv2rt.commands.options import Command, complete_model, complete_recipe, set_option, under
from ssv2rt.core.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])


def rounds_option(default: int) -> Callable[[F], F]:
    return click.option(
        "--rounds", default=default, show_default=True, type=click.IntRange(2, 1000), help="Timed rounds."
    )


def threads_option() -> Callable[[F], F]:
    return click.option(
        "--threads", type=click.IntRange(1, 1024), help="Threads of each program. Default: one per core."
    )


def size_option() -> Callable[[F], F]:
    return click.option("--size", default="16x112", show_default=True, help="Clip size: frames x pixels.")


def json_file_option() -> Callable[[F], F]:
    return click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures to this file.")


@click.group()
def benchmark() -> None:
    """Measure how fast each stage is, beside other programs.

    The programs take turns in short rounds, so that the ratio of two rates holds on a busy machine, too.

    \b
    Examples:
      ssv2rt benchmark decode
      ssv2rt benchmark score --json score.json
    """


@benchmark.command(cls=Command)
@click.argument("videos", required=False, type=click.Path(path_type=Path, exists=True))
@click.option("--clips", default=32, show_default=True, type=click.IntRange(8, 10_000), help="Clips per round.")
@rounds_option(5)
@threads_option()
@click.option("--scale/--no-scale", default=True, help="Also measure indexing, and startup with 220,847 clips.")
@click.option(
    "--repacked",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Output of `ssv2rt repack`: compare its clips with the originals. May be repeated.",
)
@json_file_option()
def decode(
    videos: Path | None,
    scale: bool,
    threads: int | None,
    repacked: tuple[Path, ...],
    json_file: Path | None,
    **options: Any,
) -> None:
    """Time decoding of videos to clips, beside other libraries.

    The limit is the rate at which FFmpeg decodes alone. Clips go to the GPU, or to RAM without a GPU. VIDEOS is a video or a
    folder of videos. Default: synthetic videos of 427x240, coded like SSv2. With --repacked, the videos are those of the
    repacked data set and their originals, at 224 and at 112 pixels, and nothing else is measured.

    \b
    Examples:
      ssv2rt benchmark decode --repacked OUT
      ssv2rt benchmark decode DIR/videos --no-scale --json decode.json
    """
    from ssv2rt.benchmark.decode import benchmark_decode, benchmark_videos
    from ssv2rt.benchmark.scale import benchmark_scale
    from ssv2rt.report.benchmark_tables import show_decode, show_repacked

    if repacked:
        from ssv2rt.repack.benchmark import benchmark_repacked

        if videos:
            raise UsageError(f"VIDEOS '{videos}' and --repacked exclude each other; give one of them")
        figures = benchmark_repacked(repacked, threads=threads or 0, **options)
        show_repacked(figures)
        _write(json_file, figures)
        return
    figures = benchmark_decode(benchmark_videos(videos), threads=threads or 0, **options)
    if scale:
        figures["scale"] = benchmark_scale()
    show_decode(figures)
    _write(json_file, figures)


@benchmark.command(cls=Command)
@click.argument("recipe", required=False, shell_complete=complete_recipe)
@click.option("--data", type=click.Path(path_type=Path), help="Data set. Default: synthetic, 427x240, coded like SSv2.")
@set_option("clip.size=112")
@click.option("--steps", default=4, show_default=True, type=click.IntRange(1, 10_000), help="Training steps per round.")
@rounds_option(5)
@json_file_option()
def train(
    recipe: str | None, data: Path | None, overrides: tuple[str, ...], json_file: Path | None, **options: Any
) -> None:
    """Time training with the loader, a ready batch and a plain loop.

    RECIPE is the name of a training recipe, or the path of a .toml file. Default: ssv2-resnet3d18; without a GPU, in batches
    of 4 clips of 112x112.

    \b
    Examples:
      ssv2rt benchmark train
      ssv2rt benchmark train ssv2-i3d --data DIR --steps 10
    """
    from ssv2rt.benchmark.train import benchmark_train, recipe_to_benchmark
    from ssv2rt.dataset.prepare import prepare
    from ssv2rt.report.benchmark_tables import show_train

    settings = recipe_to_benchmark(recipe, overrides, data)
    figures = benchmark_train(settings, prepare(settings.data), **options)
    show_train(figures)
    _write(json_file, figures)


@benchmark.command(cls=Command)
@click.argument("network", required=False, metavar="[MODEL]", shell_complete=complete_model)
@under(
    "Workload",
    click.option(
        "--model",
        shell_complete=complete_model,
        help="Network, with random weights, in place of MODEL. Default: resnet3d18.",
    ),
    size_option(),
    click.option("--batch", default=8, show_default=True, type=click.IntRange(1, 4096), help="Clips per batch."),
    set_option("model.width=32", "a setting of the network"),
)
@under(
    "Measurement",
    click.option(
        "--precision",
        "precisions",
        multiple=True,
        type=click.Choice(["fp32", "bf16", "fp16", "int8", "fp8"]),
        help="Precision of engines; may be repeated. Default: all.",
    ),
    click.option(
        "--compile/--no-compile",
        "compiled",
        default=True,
        help="Also torch.compile and AOTInductor, which take minutes.",
    ),
    threads_option(),
    rounds_option(5),
    json_file_option(),
)
def engine(
    network: str | None,
    model: str | None,
    size: str,
    overrides: tuple[str, ...],
    threads: int | None,
    json_file: Path | None,
    **options: Any,
) -> None:
    """Time engines in every precision, PyTorch and ONNX Runtime.

    MODEL is the name of a network; --model names it, too. Each engine is also called directly through its backend's API. With
    a GPU, only what runs on the GPU is measured.

    \b
    Examples:
      ssv2rt benchmark engine
      ssv2rt benchmark engine --model r3d_18 --precision int8 --no-compile
    """
    from ssv2rt.benchmark.engine import benchmark_engine
    from ssv2rt.core.recipe_files import recipe_of_network
    from ssv2rt.report.benchmark_tables import show_engine

    if network and model:
        raise UsageError(f"{network} with --model {model}: both name the network; leave out one of them")
    settings = recipe_of_network(network or model or "resnet3d18", size, overrides)
    figures = benchmark_engine(settings.model, settings.clip, threads=threads or 0, **options)
    show_engine(figures)
    _write(json_file, figures)


@benchmark.command(cls=Command)
@click.argument("videos", required=False, type=click.Path(path_type=Path, exists=True))
@under(
    "Workload",
    click.option(
        "--model",
        default="resnet3d18",
        show_default=True,
        shell_complete=complete_model,
        help="Network, with random weights.",
    ),
    size_option(),
    set_option("model.width=32", "a setting of the network"),
)
@under(
    "Measurement",
    click.option("--count", default=64, show_default=True, type=click.IntRange(8, 100_000), help="Videos per round."),
    rounds_option(4),
    click.option(
        "--names",
        default=100_000,
        show_default=True,
        type=click.IntRange(0),
        help="Files in the folder for timing the first row; 0 skips it.",
    ),
    json_file_option(),
)
def score(
    videos: Path | None, model: str, size: str, overrides: tuple[str, ...], json_file: Path | None, **options: Any
) -> None:
    """Time scoring end to end, each stage alone and a plain script.

    VIDEOS is a video or a folder of videos. Default: synthetic videos of 427x240, coded like SSv2.

    \b
    Examples:
      ssv2rt benchmark score
      ssv2rt benchmark score DIR/videos --model i3d --count 500
    """
    from ssv2rt.benchmark.decode import benchmark_videos
    from ssv2rt.benchmark.score import benchmark_score
    from ssv2rt.core.recipe_files import recipe_of_network
    from ssv2rt.report.benchmark_tables import show_score

    settings = recipe_of_network(model, size, overrides)
    figures = benchmark_score(settings.model, settings.clip, benchmark_videos(videos), **options)
    show_score(figures)
    _write(json_file, figures)


def _write(file: Path | None, figures: dict[str, Any]) -> None:
    from ssv2rt.core.atomic_files import write_json

    if file:
        write_json(file, figures)
