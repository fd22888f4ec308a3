"""The command that builds engines."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ssv2rt.commands.output import print_facts
from ssv2rt.core.errors import UsageError, UserError


@click.command("build-engine")
@click.argument("run", required=False)
@click.option("--fp32", "precision", flag_value="fp32", help="Exact to rounding.")
@click.option("--bf16", "precision", flag_value="bf16", help="Half precision with the range of fp32.")
@click.option("--fp16", "precision", flag_value="fp16", help="Half precision (the default).")
@click.option("--int8", "precision", flag_value="int8", help="8-bit integers, calibrated on training clips.")
@click.option("--fp8", "precision", flag_value="fp8", help="8-bit floats, on GPUs that have them; calibrated.")
@click.option(
    "--max-drop", type=click.FloatRange(0, 100), help="int8: points of top-1 that may be lost; see the README."
)
@click.option("--onnx", type=click.Path(path_type=Path), help="A graph made elsewhere, in place of a run.")
@click.option("--labels", type=click.Path(path_type=Path), help="With --onnx: names of the classes.")
@click.option("--recipe", help="Engine recipe, by name or path. Default: the one named like the precision.")
@click.option(
    "--backend", default="auto", show_default=True, help="auto, tensorrt, tensorrt-rtx, openvino or aotinductor."
)
@click.option("--target", "targets", multiple=True, help="tensorrt-rtx: GPU architecture to build for, such as sm89.")
@click.option("--data", type=click.Path(path_type=Path), help="Another place of the run's data set.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting: gate.clips=50.")
@click.option("--debug-layers", is_flag=True, help="Also compare each layer with the fp32 graph's.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def build_engine(
    run: str | None,
    precision: str | None,
    max_drop: float | None,
    onnx: Path | None,
    labels: Path | None,
    recipe: str | None,
    backend: str,
    targets: tuple[str, ...],
    data: Path | None,
    overrides: tuple[str, ...],
    debug_layers: bool,
    as_json: bool,
) -> None:
    """Build an engine of a run's best checkpoint, and compare it with PyTorch. Default: the newest run."""
    from ssv2rt.core.recipe_files import load_engine_recipe
    from ssv2rt.core.recipes import Data
    from ssv2rt.core.run_folders import RUNS, find_run
    from ssv2rt.dataset.prepare import prepare, with_root
    from ssv2rt.engines.backends.registry import NAMES, choose_backend
    from ssv2rt.engines.build import build_of
    from ssv2rt.engines.source import source_of_onnx, source_of_run

    if backend not in ("auto", *NAMES):
        raise UsageError(f"--backend {backend}: there are auto, {', '.join(NAMES)}")
    if onnx and (run or not labels or not data):
        wrong = (
            f"run '{run}' as well" if run else "no --data, whose clips it is compared on" if labels else "no --labels"
        )
        raise UsageError(f"--onnx {onnx} with {wrong}: give --onnx FILE --labels FILE --data DIR, or a run")
    if debug_layers and precision == "bf16":
        raise UsageError(
            "--debug-layers with --bf16: ONNX Runtime, which compares layers, computes no bf16; take --fp16"
        )
    options = [*(("--data", str(data)) if data else ()), *(("--recipe", recipe) if recipe else ())]
    options += [part for override in overrides for part in ("--set", override)]
    if max_drop is not None:
        options += ["--max-drop", f"{max_drop:g}"]
        if precision not in ("int8", "fp8"):
            raise UsageError(f"--max-drop {max_drop:g} is for --int8 and --fp8, which lose accuracy; give one of them")
        overrides = (f"calibration.max_drop={max_drop}", f"gate.max_top1_drop={max_drop}", *overrides)
    if precision:
        overrides = (f"engine.precision={precision}", *overrides)
    if targets:
        overrides = (*overrides, f"engine.targets={json.dumps(targets)}")
    settings = load_engine_recipe(recipe or precision or "fp16", overrides)
    if onnx:
        assert labels is not None
        source, folder, where = source_of_onnx(onnx, labels), RUNS / onnx.stem / "engines", Data()
    else:
        found = find_run(run)
        source, folder, where = source_of_run(found), found.engines, found.recipe().data
    manifest = prepare(with_root(where, data))
    bundle, failures = build_of(
        source,
        folder,
        settings,
        choose_backend(settings.engine.precision) if backend == "auto" else backend,
        manifest,
        options=options,
        debug=folder / f"{settings.engine.precision}-layers" if debug_layers else None,
    )
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
    print_facts(info.model_dump(mode="json") if as_json else facts, as_json)
    if failures:
        raise UserError(f"the engine is not good enough, and kept apart in '{bundle.path}': {'; '.join(failures)}")
