"""`ssv2rt benchmark`: the commands that measure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ssv2rt.commands.options import Command, complete_model, complete_recipe, json_file_option, set_option

if TYPE_CHECKING:
    from ssv2rt.core.recipes import Recipe


@click.group()
def benchmark() -> None:
    """Measure each stage beside its peers and its limit.

    \b
    Examples:
      ssv2rt benchmark decode
      ssv2rt benchmark score --json score.json
    """


@benchmark.command(cls=Command)
@click.argument("videos", required=False, type=click.Path(path_type=Path, exists=True))
@click.option("--clips", default=32, show_default=True, type=click.IntRange(8, 10_000), help="Clips in a round.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(2, 1000), help="Rounds that are timed.")
@click.option("--threads", type=click.IntRange(1, 1024), help="For each contestant. Default: one a core.")
@click.option("--scale/--no-scale", default=True, help="Also measure indexing and the start with 220,847 clips.")
@json_file_option()
def decode(
    videos: Path | None, clips: int, rounds: int, threads: int | None, scale: bool, json_file: Path | None
) -> None:
    """Time how videos become clips, beside other libraries.

    And beside the limit that decoding sets. Clips go to the GPU, or without one to memory.

    VIDEOS is a video or a folder of them. Default: synthetic ones of 427x240, coded like SSv2's.

    \b
    Examples:
      ssv2rt benchmark decode
      ssv2rt benchmark decode DIR/videos --no-scale --json decode.json
    """
    from ssv2rt.benchmark.decode import benchmark_decode, benchmark_videos
    from ssv2rt.benchmark.scale import benchmark_scale
    from ssv2rt.core.atomic_files import write_json
    from ssv2rt.report.benchmark_tables import show_decode

    figures = benchmark_decode(benchmark_videos(videos), threads=threads or 0, clips=clips, rounds=rounds)
    if scale:
        figures["scale"] = benchmark_scale()
    show_decode(figures)
    if json_file:
        write_json(json_file, figures)


@benchmark.command(cls=Command)
@click.argument("recipe", required=False, shell_complete=complete_recipe)
@click.option(
    "--data", type=click.Path(path_type=Path), help="A data set. Default: synthetic, 427x240, coded like SSv2's."
)
@set_option("clip.size=112")
@click.option("--steps", default=4, show_default=True, type=click.IntRange(1, 10_000), help="Steps in a turn.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(2, 1000), help="Rounds that are timed.")
@json_file_option()
def train(
    recipe: str | None, data: Path | None, overrides: tuple[str, ...], steps: int, rounds: int, json_file: Path | None
) -> None:
    """Time training, beside a ready batch and a plain loop.

    Default RECIPE: ssv2-resnet3d18; without a GPU in batches of 4 clips of 112x112.

    \b
    Examples:
      ssv2rt benchmark train
      ssv2rt benchmark train ssv2-i3d --data DIR --steps 10
    """
    from ssv2rt.benchmark.train import RECIPE, benchmark_train, cpu_overrides
    from ssv2rt.core.atomic_files import write_json
    from ssv2rt.core.recipe_files import load_recipe
    from ssv2rt.dataset.prepare import override_root, prepare, ssv2_like_set
    from ssv2rt.report.benchmark_tables import show_train

    settings = load_recipe(recipe or RECIPE, overrides if recipe else (*cpu_overrides(), *overrides))
    settings = settings.model_copy(update={"data": override_root(settings.data, data or ssv2_like_set())})
    figures = benchmark_train(settings, prepare(settings.data), steps=steps, rounds=rounds)
    show_train(figures)
    if json_file:
        write_json(json_file, figures)


@benchmark.command(cls=Command)
@click.argument("model", default="resnet3d18", shell_complete=complete_model)
@click.option("--size", default="16x112", show_default=True, help="Frames x pixels of a clip.")
@click.option("--batch", default=8, show_default=True, type=click.IntRange(1, 4096), help="Clips in a batch.")
@click.option("--threads", type=click.IntRange(1, 1024), help="For each contestant. Default: one a core.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(2, 1000), help="Rounds that are timed.")
@click.option("--compile/--no-compile", default=True, help="Also torch.compile and AOTInductor, which take a while.")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(["fp32", "bf16", "fp16", "int8", "fp8"]),
    help="Engines of this precision; may be given more than once. Default: all.",
)
@set_option("model.width=32", "the network")
@json_file_option()
def engine(
    model: str,
    size: str,
    batch: int,
    threads: int | None,
    rounds: int,
    compile: bool,
    precisions: tuple[str, ...],
    overrides: tuple[str, ...],
    json_file: Path | None,
) -> None:
    """Time engines in every precision, beside PyTorch.

    And beside ONNX Runtime, and the backend called by hand. MODEL is a network of the registry; its weights are random. Where
    there is a GPU, only what runs on it takes part.

    \b
    Examples:
      ssv2rt benchmark engine
      ssv2rt benchmark engine r3d_18 --size 16x112 --precision int8 --no-compile
    """
    from ssv2rt.benchmark.engine import benchmark_engine
    from ssv2rt.core.atomic_files import write_json
    from ssv2rt.report.benchmark_tables import show_engine

    settings = _network(model, size, overrides)
    figures = benchmark_engine(
        settings.model,
        settings.clip,
        batch=batch,
        threads=threads or 0,
        rounds=rounds,
        compiled=compile,
        precisions=precisions,
    )
    show_engine(figures)
    if json_file:
        write_json(json_file, figures)


@benchmark.command(cls=Command)
@click.argument("videos", required=False, type=click.Path(path_type=Path, exists=True))
@click.option(
    "--model",
    default="resnet3d18",
    show_default=True,
    shell_complete=complete_model,
    help="A network of the registry; random weights.",
)
@click.option("--size", default="16x112", show_default=True, help="Frames x pixels of a clip.")
@click.option("--count", default=64, show_default=True, type=click.IntRange(8, 100_000), help="Videos in a turn.")
@click.option("--rounds", default=4, show_default=True, type=click.IntRange(2, 1000), help="Rounds that are timed.")
@click.option("--names", default=100_000, show_default=True, type=click.IntRange(0), help="Files for the first row.")
@set_option("model.width=32", "the network")
@json_file_option()
def score(
    videos: Path | None,
    model: str,
    size: str,
    count: int,
    rounds: int,
    names: int,
    overrides: tuple[str, ...],
    json_file: Path | None,
) -> None:
    """Time scoring from end to end, beside each stage alone.

    And beside a plain script. VIDEOS is a video or a folder of them. Default: synthetic ones of 427x240, coded like SSv2's.

    \b
    Examples:
      ssv2rt benchmark score
      ssv2rt benchmark score DIR/videos --model i3d --count 500
    """
    from ssv2rt.benchmark.decode import benchmark_videos
    from ssv2rt.benchmark.score import benchmark_score
    from ssv2rt.core.atomic_files import write_json
    from ssv2rt.report.benchmark_tables import show_score

    settings = _network(model, size, overrides)
    figures = benchmark_score(
        settings.model, settings.clip, benchmark_videos(videos), count=count, rounds=rounds, names=names
    )
    show_score(figures)
    if json_file:
        write_json(json_file, figures)


def _network(model: str, size: str, overrides: tuple[str, ...]) -> Recipe:
    """A network and its clips, from what is typed."""
    from ssv2rt.core.errors import UsageError
    from ssv2rt.core.recipe_files import load_recipe

    frames, _, pixels = size.partition("x")
    if not (frames.isdecimal() and pixels.isdecimal()):
        raise UsageError(f"--size {size}: write frames x pixels, like 16x112")
    changes = (f"model.name={model}", f"clip.frames={frames}", f"clip.size={pixels}", *overrides)
    return load_recipe("ssv2-resnet3d18", changes)
