"""`ssv2rt build-engine`: from a run or an ONNX file to an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from ssv2rt.commands.options import (
    Command,
    complete_engine_recipe,
    complete_run,
    json_option,
    set_option,
    under,
)
from ssv2rt.commands.output import print_facts, print_json
from ssv2rt.core.errors import UserError
from ssv2rt.engines.normalization import PRESETS, Colors

if TYPE_CHECKING:
    from ssv2rt.engines.bundle import Bundle


@click.command("build-engine", cls=Command)
@click.argument("run", required=False, shell_complete=complete_run)
@under(
    "Precision",
    click.option("--fp32", is_flag=True, help="Single precision."),
    click.option("--bf16", is_flag=True, help="bfloat16."),
    click.option("--fp16", is_flag=True, help="Half precision (default)."),
    click.option("--int8", is_flag=True, help="8-bit integers, calibrated on training clips."),
    click.option("--fp8", is_flag=True, help="8-bit floats (E4M3), for GPUs since Ada; calibrated."),
    click.option(
        "--max-drop",
        type=click.FloatRange(0, 100),
        help="int8, fp8: largest drop of top-1 in points; keeps sensitive blocks in floating point.",
    ),
    click.option(
        "--recipe",
        shell_complete=complete_engine_recipe,
        help="Engine recipe, by name or path. Default: the one named after the precision.",
    ),
    set_option("gate.clips=50"),
)
@under(
    "Input and output",
    click.option(
        "--data", type=click.Path(path_type=Path), help="Data set for calibration and verification. Default: the run's."
    ),
    click.option(
        "--calibrate-on",
        multiple=True,
        metavar="VIDEOS",
        help="int8, fp8: unlabeled videos for calibration: a folder, a file or @list.txt; may be repeated.",
    ),
    click.option("--debug-layers", is_flag=True, help="Also compare each layer with the fp32 graph."),
    json_option("the result"),
)
@under(
    "ONNX files of other programs",
    click.option("--onnx", type=click.Path(path_type=Path), help="ONNX file to build from, instead of a run."),
    click.option(
        "--labels",
        type=click.Path(path_type=Path),
        help="File with the class names. Default: those that a graph of ssv2rt names.",
    ),
    click.option(
        "--normalize", type=click.Choice(list(PRESETS)), help="Normalization of the pixels. Default: imagenet."
    ),
    click.option("--mean", metavar="R,G,B", help="Instead of --normalize: mean that is subtracted."),
    click.option("--std", metavar="R,G,B", help="Standard deviation that is divided by."),
    click.option(
        "--scale",
        type=float,
        help="What pixel values are divided by first. 1: mean and std are of 0 to 255. Default: 255.",
    ),
    click.option(
        "--colors",
        type=click.Choice(get_args(Colors)),
        help="Order of the colors in a float input; --mean and --std are always of red, green, blue. Default: rgb.",
    ),
)
@under(
    "Machine",
    click.option(
        "--backend", default="auto", show_default=True, help="auto, tensorrt, tensorrt-rtx, openvino or aotinductor."
    ),
    click.option(
        "--target",
        "targets",
        multiple=True,
        help="tensorrt-rtx: GPU architecture to build for, such as sm89; may be repeated.",
    ),
)
def build_engine(as_json: bool, **options: Any) -> None:
    """Build an engine from a run or an ONNX file, and compare it.

    The engine is built from the best checkpoint of RUN, by default the newest run, or from an ONNX file. Several precisions
    give several engines. An engine that fails the gate of its recipe is kept in a folder that ends in .failed, and the exit
    code is 1.

    Without a data set, fp32, fp16 and bf16 engines are compared on generated clips, and accuracy is not measured. How clips
    are read for an ONNX file is set by --set clip.sampling=dense, clip.center_crop, clip.views and so on.

    \b
    Examples:
      ssv2rt build-engine demo-20260101-120000 --int8 --max-drop 0.5
      ssv2rt build-engine --onnx r3d.onnx --labels names.txt --normalize half
    """
    from ssv2rt.engines.request import build_as_requested, requests_for

    results = [build_as_requested(request) for request in requests_for(**options)]
    found = [bundle.info.model_dump(mode="json") if as_json else _facts(bundle) for bundle, _ in results]
    if as_json and len(found) > 1:
        print_json(found)
    else:
        for facts in found:
            print_facts(facts, as_json)
    if wrong := [(bundle.path, reasons) for bundle, reasons in results if reasons]:
        kept = "; ".join(f"'{path}' ({', '.join(reasons)})" for path, reasons in wrong)
        raise UserError(f"an engine fails the gate and is kept in {kept}")


def _facts(bundle: Bundle) -> dict[str, object]:
    """What to print about a new engine."""
    from ssv2rt.report.engine_tables import facts_of_import

    info = bundle.info
    verification = info.verification or {}
    facts: dict[str, object] = {
        "engine": str(bundle.path),
        "backend": f"{info.backend} {info.backend_version}",
        "compared by": verification["by"],
        "clips": verification["clips"],
        "clips from": verification["clips_from"],
        "agreement": verification["agreement"],
        f"top-1, {verification['reference']}": _measured(verification["top1_model"]),
        "top-1, engine": _measured(verification["top1_engine"]),
    }
    if short := [note for note in verification["notes"] if note.startswith("compared")]:
        facts["note"] = "; ".join(short)
    facts |= facts_of_import(info.imported)
    if kept := (info.calibration or {}).get("kept"):
        facts["kept in float"] = ", ".join(kept)
    if layers := info.settings.get("layers", {}).get("convolutions"):
        facts["convolutions"] = ", ".join(f"{count} {kind}" for kind, count in layers.items())
    if rates := info.settings.get("clips_per_second"):
        facts["clips/s here"] = float(max(rates.values()))
    if "clips_per_second_fp16" in verification:
        facts["clips/s here"] = verification["clips_per_second"]
        facts["clips/s here, fp16"] = verification["clips_per_second_fp16"]
    return facts


def _measured(value: float | None) -> float | str:
    return "not measured" if value is None else value
