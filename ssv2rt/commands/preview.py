"""`ssv2rt preview`: what the network will see."""

from __future__ import annotations

from pathlib import Path

import click

from ssv2rt.commands.options import Command, complete_recipe, set_option
from ssv2rt.commands.output import print_facts
from ssv2rt.core.errors import UserError


@click.command(cls=Command)
@click.argument("source", metavar="DATA|VIDEO", type=click.Path(path_type=Path))
@click.option(
    "--recipe",
    default="ssv2-resnet3d18",
    show_default=True,
    shell_complete=complete_recipe,
    help="Whose sampling and augmentation is shown.",
)
@set_option("augment.erase=0.5")
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
    """Draw what the network will see of clips, as a picture (PNG).

    Clips are shown after sampling, and training clips after augmentation.

    \b
    Examples:
      ssv2rt preview DIR
      ssv2rt preview clip.webm --set clip.views=[2,3] --out views.png
    """
    from ssv2rt.core.recipe_files import load_recipe
    from ssv2rt.dataset.index import open_manifest
    from ssv2rt.dataset.listing import is_video
    from ssv2rt.report.contact_sheet import dataset_rows, draw_sheet, video_rows
    from ssv2rt.video.container import BadVideo

    settings = load_recipe(recipe, overrides)
    if source.is_file() and is_video(source.name):
        try:
            rows = video_rows(source, settings)
        except BadVideo as error:
            raise UserError(f"'{source}' cannot be shown: {error}; give another video") from None
    else:
        part = open_manifest(source).split(split)
        rows = dataset_rows(part, settings, clips=clips, draws=draws if split == "train" else 0, seed=seed)
    bad = draw_sheet(rows, settings, out)
    print_facts({"picture": str(out), "rows": len(rows) - bad, "unreadable": bad}, False)
