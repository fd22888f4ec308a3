"""`ssv2rt preview`: clips as the network sees them, as a picture."""

from __future__ import annotations

from pathlib import Path

import click

from ssv2rt.commands.options import Command, complete_recipe, complete_run, set_option, under
from ssv2rt.commands.output import print_facts
from ssv2rt.core.errors import UsageError


@click.command(cls=Command)
@click.argument("source", metavar="DATA|VIDEO", type=click.Path(path_type=Path))
@under(
    "Sampling and augmentation",
    click.option(
        "--recipe",
        shell_complete=complete_recipe,
        help="Training recipe, by name or path. Default: that of --explain, or what `train --data` takes on this machine.",
    ),
    set_option("augment.erase=0.5"),
)
@under(
    "Clips",
    click.option(
        "--split",
        type=click.Choice(["train", "validation", "test"]),
        help="Split to take clips from. Default: train; of videos without labels, all.",
    ),
    click.option(
        "--clips",
        default=4,
        show_default=True,
        type=click.IntRange(1, 100),
        help="Number of clips, of as many classes as possible.",
    ),
    click.option(
        "--draws", default=2, show_default=True, type=click.IntRange(0, 20), help="Random augmentations of each clip."
    ),
    click.option("--seed", default=0, show_default=True, help="Seed of the choice of clips."),
    click.option(
        "--explain",
        metavar="RUN",
        shell_complete=complete_run,
        help="Predict the clips with this run's network, and lay over them what speaks for it (Grad-CAM).",
    ),
)
@under(
    "Output",
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        default="preview.png",
        show_default=True,
        help="PNG file; one of that name is replaced.",
    ),
)
def preview(
    source: Path,
    recipe: str | None,
    overrides: tuple[str, ...],
    out: Path,
    split: str | None,
    clips: int,
    draws: int,
    seed: int,
    explain: str | None,
) -> None:
    """Draw clips as the network sees them, into a PNG file.

    Clips are drawn after sampling and cropping, and training clips also with random augmentation. Of a single video, all
    views are drawn.

    \b
    Examples:
      ssv2rt preview DIR --explain latest
      ssv2rt preview clip.webm --set clip.views=[2,3] --out views.png
    """
    from ssv2rt.core.hardware import choose_device
    from ssv2rt.core.recipe_files import default_recipe, load_recipe
    from ssv2rt.core.run_folders import find_run
    from ssv2rt.dataset.held_out import with_validation_share
    from ssv2rt.dataset.index import open_manifest
    from ssv2rt.dataset.listing import is_video
    from ssv2rt.models.weights import load_trained
    from ssv2rt.report.contact_sheet import dataset_rows, draw_sheet, video_rows

    if out.suffix.lower() != ".png":
        raise UsageError(f"--out {out}: the picture is a PNG file; give a name that ends in .png")
    trained = load_trained(find_run(explain)) if explain else None
    if trained and (recipe or overrides):
        raise UsageError(f"--explain {explain} reads clips as the run does; leave out --recipe and --set")
    name = recipe or default_recipe(choose_device().type)
    settings = trained.recipe if trained else load_recipe(name, overrides)
    if source.is_file() and is_video(source.name):
        rows = video_rows(source, settings)
    else:
        manifest = with_validation_share(open_manifest(source), settings.data.validation_share)
        split = split or ("train" if manifest.labels else "all")
        augmented = draws if split == "train" else 0
        rows = dataset_rows(manifest.split(split), settings, clips=clips, draws=augmented, seed=seed)
    bad = draw_sheet(rows, settings, out, trained)
    facts = {"picture": str(out), "rows": len(rows) - bad, "unreadable": bad}
    print_facts(facts | {"recipe": f"that of run {explain}" if explain else name}, False)
