"""`ssv2rt build-engine`: from a run or an ONNX file to an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    click.option("--onnx", type=click.Path(path_type=Path), help="ONNX file to build from, instead of a run."),
    click.option("--labels", type=click.Path(path_type=Path), help="With --onnx: file with the class names."),
    click.option(
        "--data", type=click.Path(path_type=Path), help="Data set for calibration and verification. Default: the run's."
    ),
    click.option("--debug-layers", is_flag=True, help="Also compare each layer with the fp32 graph."),
    json_option("the result"),
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
    """Build an engine from a run, and compare it with PyTorch.

    The engine is built from the best checkpoint of RUN, by default the newest run, or from an ONNX file. Several precisions
    give several engines. An engine that fails the gate of its recipe is kept in a folder that ends in .failed, and the exit
    code is 1.

    \b
    Examples:
      ssv2rt build-engine --fp16
      ssv2rt build-engine demo-20260101-120000 --int8 --max-drop 0.5
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
    info = bundle.info
    verification = info.verification or {}
    facts: dict[str, object] = {
        "engine": str(bundle.path),
        "backend": f"{info.backend} {info.backend_version}",
        "compared by": verification["by"],
        "clips": verification["clips"],
        "agreement": verification["agreement"],
        "top-1, PyTorch": verification["top1_model"],
        "top-1, engine": verification["top1_engine"],
    }
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
