"""Commands about data sets."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ssv2rt.commands.output import print_facts
from ssv2rt.core.errors import UsageError, UserError


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The manifest. Default: manifest.parquet beside the data.")
@click.option("--decode", is_flag=True, help="Also decode every frame: finds damage that headers do not show.")
@click.option("--workers", type=click.IntRange(1, 1024), help="Processes. Default: one a core; more for slow storage.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def index(data: Path, out: Path | None, decode: bool, workers: int | None, as_json: bool) -> None:
    """Look at every clip of a data set once: what it is, and what is wrong with it.

    DATA is SSv2's folder, a folder with one for each class, or a .csv or .parquet table with the columns path and label.
    """
    from ssv2rt.core.progress import Progress
    from ssv2rt.dataset.index import index as look_at_all
    from ssv2rt.dataset.summary import show, summarize

    with Progress(f"indexing {data}") as progress:
        manifest, where = look_at_all(data, out=out, decode=decode, workers=workers or 0, progress=progress.show)
    summary = summarize(manifest, where)
    if as_json:
        click.echo(json.dumps(summary))
    else:
        show(summary)


@click.command()
@click.argument("source", metavar="DATA|VIDEO", type=click.Path(path_type=Path))
@click.option(
    "--recipe", default="ssv2-resnet3d18", show_default=True, help="Whose sampling and augmentation is shown."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting: augment.erase=0.5.")
@click.option("--out", type=click.Path(path_type=Path), default="preview.png", show_default=True)
@click.option("--split", type=click.Choice(["train", "validation", "test"]), default="train", show_default=True)
@click.option("--clips", default=4, show_default=True, type=click.IntRange(1, 100), help="Clips, of different classes.")
@click.option("--draws", default=2, show_default=True, type=click.IntRange(0, 20), help="Training draws of each.")
@click.option("--seed", default=0, show_default=True, help="Which clips.")
def preview(
    source: Path,
    recipe: str,
    overrides: tuple[str, ...],
    out: Path,
    split: str,
    clips: int,
    draws: int,
    seed: int,
) -> None:
    """Draw what the network will see, after sampling and augmentation, as a picture (PNG)."""
    from ssv2rt.core.recipe_files import load_recipe
    from ssv2rt.dataset.index import open_manifest
    from ssv2rt.dataset.listing import is_video
    from ssv2rt.report.contact_sheet import draw_sheet, rows_of_data, rows_of_video
    from ssv2rt.video.container import BadVideo

    settings = load_recipe(recipe, overrides)
    if source.is_file() and is_video(source.name):
        try:
            rows = rows_of_video(source, settings)
        except BadVideo as error:
            raise UserError(f"'{source}' cannot be shown: {error}; give another video") from None
    else:
        part = open_manifest(source).split(split)
        rows = rows_of_data(part, settings, clips=clips, draws=draws if split == "train" else 0, seed=seed)
    bad = draw_sheet(rows, settings, out)
    print_facts({"picture": str(out), "rows": len(rows) - bad, "unreadable": bad}, False)


@click.command()
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
    help="all: twins share their frames to the last bit. first: one key frame and hidden pictures, as SSv2 has.",
)
def synthesize(out: Path, clips: int, size: str, frames: str, seed: int, key_frames: str) -> None:
    """Make a synthetic data set of time-reversed twins, in SSv2's layout."""
    from ssv2rt.core.progress import Progress
    from ssv2rt.core.recipes import Synthetic, validated
    from ssv2rt.dataset.synthetic import synthesize as write

    width, height = _two_numbers(size, "x", "--size", "427x240")
    fewest, most = _two_numbers(frames, "-", "--frames", "24-60")
    spec = validated(
        Synthetic, {"clips": clips, "width": width, "height": height, "frames": (fewest, most), "seed": seed}
    )
    with Progress(f"making {out}", spec.clips) as progress:
        write(out, spec, key_frames="first" if key_frames == "first" else "all", progress=progress.add)
    print_facts({"data": str(out), "clips": spec.clips, "try": f"ssv2rt train --data {out}"}, False)


def _two_numbers(text: str, separator: str, option: str, example: str) -> tuple[int, int]:
    first, _, second = text.partition(separator)
    try:
        return int(first), int(second)
    except ValueError:
        raise UsageError(f"{option} {text}: write it like {example}") from None
