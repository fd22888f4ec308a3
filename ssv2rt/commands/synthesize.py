"""`ssv2rt synthesize`: a synthetic data set."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from ssv2rt.commands.options import Command
from ssv2rt.commands.output import print_facts
from ssv2rt.core.errors import UsageError


@click.command(cls=Command)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--clips", default=1000, show_default=True, help="Clips in all three splits together; an even number.")
@click.option("--size", default="427x240", show_default=True, help="Frame size: width x height in pixels.")
@click.option("--frames", default="24-60", show_default=True, help="Smallest and largest number of frames of a clip.")
@click.option("--seed", default=0, show_default=True, help="Seed of everything random.")
@click.option(
    "--key-frames",
    type=click.Choice(["all", "first"]),
    default="all",
    show_default=True,
    help="all: only key frames; twins have bit-identical frames. first: one key frame and hidden frames, as in SSv2.",
)
def synthesize(out: Path, clips: int, size: str, frames: str, seed: int, key_frames: str) -> None:
    """Generate a synthetic data set of time-reversed twins.

    It has the layout of SSv2 and ten of its labels. OUT is a new or empty folder.

    \b
    Examples:
      ssv2rt synthesize data
      ssv2rt synthesize data --clips 80 --size 64x48 --frames 10-14
    """
    from ssv2rt.core.progress import Progress
    from ssv2rt.core.recipes import Synthetic
    from ssv2rt.core.sections import validated
    from ssv2rt.dataset.synthetic import synthesize as write

    width, height = _two_numbers(size, "x", "--size", "427x240")
    fewest, most = _two_numbers(frames, "-", "--frames", "24-60")
    spec = validated(
        Synthetic, {"clips": clips, "width": width, "height": height, "frames": (fewest, most), "seed": seed}
    )
    with Progress(f"making {out}", spec.clips) as progress:
        write(out, spec, key_frames="first" if key_frames == "first" else "all", progress=progress.add)
    print_facts({"data": str(out), "clips": spec.clips, "try": f"ssv2rt train --data {shlex.quote(str(out))}"}, False)


def _two_numbers(text: str, separator: str, option: str, example: str) -> tuple[int, int]:
    first, _, second = text.partition(separator)
    try:
        return int(first), int(second)
    except ValueError:
        raise UsageError(f"{option} {text}: write it like {example}") from None
