"""`ssv2rt repack`: a copy of a data set that is decoded in less time."""

from __future__ import annotations

import logging
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ssv2rt.commands.options import Command, FloatRange, complete_recipe, complete_run, json_option, set_option, under
from ssv2rt.commands.output import print_facts, print_json
from ssv2rt.core.errors import UsageError, UserError

if TYPE_CHECKING:
    from ssv2rt.core.recipes import Recipe
    from ssv2rt.repack.settings import Settings

logger = logging.getLogger(__name__)


@click.command(cls=Command)
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@under(
    "Coding",
    click.option(
        "--for",
        "target",
        type=click.Choice(["cpu", "gpu", "both"]),
        help="What will decode the clips: gpu means NVDEC. Default: what this machine has.",
    ),
    click.option(
        "--codec",
        default="auto",
        show_default=True,
        help="mjpeg, h264-intra or h264; auto measures which is decoded fastest here.",
    ),
    click.option(
        "--short-side",
        type=click.IntRange(16, 4096),
        help="Shorter side of frames in pixels; smaller clips keep their size. Default: what the recipe's crops need.",
    ),
    click.option(
        "--quality", type=int, help="Lower is better. mjpeg: 2 to 31, default 4. h264: crf 1 to 51, default 20."
    ),
    click.option(
        "--fps", type=FloatRange(0, 1000, min_open=True), help="Frames per second at most; others are left out."
    ),
    click.option(
        "--recipe",
        "recipe_name",
        shell_complete=complete_recipe,
        help="Recipe that the clips are for. Default: what `train --data` takes on machines as in --for.",
    ),
    set_option("clip.size=112", "a setting of the recipe"),
)
@under(
    "Measurement",
    click.option("--dry-run", is_flag=True, help="Measure the codecs, estimate bytes and time, and write nothing."),
    click.option("--run", shell_complete=complete_run, help="Also measure the accuracy of this run's network."),
    click.option(
        "--clips", default=24, show_default=True, type=click.IntRange(4, 100_000), help="Clips to measure codecs on."
    ),
)
@click.option("--shard", help="Repack only this shard of the clips, such as 3/16.")
@click.option("--workers", type=click.IntRange(1, 1024), help="Processes. Default: one per core.")
@json_option("the summary")
def repack(
    data: Path,
    out: Path,
    target: str | None,
    codec: str,
    recipe_name: str | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    run: str | None,
    clips: int,
    shard: str | None,
    workers: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Recode a data set so that training decodes it faster.

    DATA is a data set in any form. OUT is a new folder: a data set in the layout of SSv2 with the same ids, splits and labels,
    and its manifest. Repeat an interrupted call to continue it. With --shard, the last shard to end completes OUT.

    \b
    Examples:
      ssv2rt repack DIR OUT --dry-run
      ssv2rt repack DIR OUT --short-side 128 --codec mjpeg --shard 3/16
    """
    from ssv2rt.core.cores import cores
    from ssv2rt.core.hardware import choose_device
    from ssv2rt.core.quantities import bytes_in_words
    from ssv2rt.core.recipe_files import default_recipe, load_recipe
    from ssv2rt.repack.run import repack as repack_clips
    from ssv2rt.repack.run import settle
    from ssv2rt.repack.source import frames_in_words, open_source, short_side_of, source_name
    from ssv2rt.scoring.discover import Shard

    part = Shard.parse(shard) if shard else None
    device = choose_device().type
    chosen_recipe = bool(recipe_name or overrides)
    recipe_name = recipe_name or default_recipe(device if target is None else "cpu" if target == "cpu" else "cuda")
    recipe = load_recipe(recipe_name, overrides)
    candidates = _candidates(target, codec, recipe, options, device)
    source = open_source(data, out)
    if (most := short_side_of(source)) and most < candidates[0].short_side:
        logger.info(f"'{data}' is itself a repacked copy, with --short-side {most}; its frames are not enlarged")
        candidates = [replace(settings, short_side=most) for settings in candidates]
        options["short_side"] = options["short_side"] and most
    begun = True

    def choose() -> Settings:
        nonlocal begun
        begun = False
        logger.info(
            f"frames are for recipe '{recipe_name}', whose clips have {recipe.clip.size} pixels: "
            f"{frames_in_words(source, candidates[0])}; --recipe, --for and --short-side choose others"
        )
        if len(candidates) == 1 and not (run or dry_run):
            return candidates[0]
        from ssv2rt.repack.choose import fastest, measure
        from ssv2rt.report.repack_table import show_measured

        measured = measure(source, recipe, candidates, clips=clips, workers=workers or cores(), run=run)
        if not measured:
            raise UserError(
                f"none of {clips} clips of '{data}' could be repacked; see `ssv2rt index '{data}' --decode`"
            )
        chosen = fastest(measured)
        if as_json and dry_run:
            print_json({"chosen": chosen, "codecs": {name: asdict(figures) for name, figures in measured.items()}})
        elif dry_run or not as_json:
            show_measured(measured, chosen, clips=len(source.table))
        return next(settings for settings in candidates if settings.codec == chosen)

    if dry_run:
        choose()
        return
    settings = settle(out, source_name(data), choose)
    given = {name: value for name, value in options.items() if value is not None}
    given |= {"codec": codec} if codec != "auto" else {}
    for name, value in given.items():
        if (before := getattr(settings, name)) != value:
            option = f"--{name.replace('_', '-')}"
            was = f"without {option}" if before is None else f"with {option} {before}"
            raise UserError(f"{option} {value}: '{out}' was begun {was}; choose another folder")
    if target and target not in settings.coding.runs_on:
        raise UserError(f"--for {target}: '{out}' was begun with --codec {settings.codec}; choose another folder")
    if chosen_recipe and options["short_side"] is None and candidates[0].short_side != settings.short_side:
        raise UserError(
            f"recipe '{recipe_name}' needs --short-side {candidates[0].short_side}, and '{out}' was begun with "
            f"{settings.short_side}; choose another folder"
        )
    if run and begun:
        logger.warning(f"--run {run} is not used: the codec of '{out}' was chosen before; --dry-run measures it")
    result = repack_clips(source, source_name(data), out, settings, shard=part, workers=workers or 0)
    facts = {
        "data": str(out),
        "codec": settings.codec,
        **({"short side": settings.short_side} if as_json else {}),
        "frames": frames_in_words(source, settings),
        "quality": settings.quality,
        "clips": result.clips,
        **({"gigabytes": round(result.bytes / 1e9, 3)} if as_json else {"size": bytes_in_words(result.bytes)}),
        "times the bytes": round(result.bytes / max(1, result.source_bytes), 2),
        "left out": ", ".join(f"{reason} {count}" for reason, count in result.left_out.items()) or "none",
    }
    if result.missing:
        facts |= {
            "missing": result.missing,
            "try": "the other shards, or the same command without --shard for the rest",
        }
    else:
        facts["try"] = f"ssv2rt train --data {shlex.quote(str(out))}"
    print_facts(facts, as_json)
    if result.left_out:
        sys.exit(3)


def _candidates(target: str | None, codec: str, recipe: Recipe, options: dict[str, Any], device: str) -> list[Settings]:
    """The settings that are possible. Raises UsageError for those that are not."""
    from ssv2rt.repack.settings import CODECS, settings_for, short_side_for

    if codec == "auto":
        target = target or ("gpu" if device == "cuda" else "cpu")
        names = [name for name, known in CODECS.items() if target in known.runs_on]
    else:
        names = [codec]
    if options["quality"] is not None and len({CODECS[name].encoder for name in names if name in CODECS}) > 1:
        raise UsageError("--quality means another thing for each codec; give --codec, too")
    short_side = options["short_side"] or short_side_for(recipe)
    found = [settings_for(n, short_side=short_side, quality=options["quality"], fps=options["fps"]) for n in names]
    if target and target not in found[0].coding.runs_on:
        raise UsageError(
            f"--codec {codec} --for {target}: DALI's decoder on GPUs takes no {codec}; take auto or h264-intra"
        )
    return found
