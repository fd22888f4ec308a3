"""The command that builds engines."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ssv2rt.commands.output import print_facts
from ssv2rt.errors import UsageError, UserError


@click.command("build-engine")
@click.argument("run", required=False)
@click.option("--fp32", "precision", flag_value="fp32", help="Exact to rounding.")
@click.option("--fp16", "precision", flag_value="fp16", help="Half precision (the default).")
@click.option("--int8", "precision", flag_value="int8", help="8-bit integers, calibrated on training clips.")
@click.option("--recipe", help="Engine recipe, by name or path. Default: the one named like the precision.")
@click.option("--backend", default="auto", show_default=True, help="auto, tensorrt, tensorrt-rtx or openvino.")
@click.option("--target", "targets", multiple=True, help="tensorrt-rtx: GPU architecture to build for, such as sm89.")
@click.option("--data", type=click.Path(path_type=Path), help="Another place of the run's data set.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting: gate.clips=50.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def build_engine(
    run: str | None,
    precision: str | None,
    recipe: str | None,
    backend: str,
    targets: tuple[str, ...],
    data: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Build an engine of a run's best checkpoint, and compare it with PyTorch. Default: the newest run."""
    from ssv2rt.dataset.prepare import prepare, with_root
    from ssv2rt.engines.backends import NAMES, choose_backend
    from ssv2rt.engines.build import build_engine as build
    from ssv2rt.recipe_files import load_engine_recipe
    from ssv2rt.runs import find_run

    if backend not in ("auto", *NAMES):
        raise UsageError(f"--backend {backend}: there are auto, {', '.join(NAMES)}")
    where = find_run(run)
    if precision:
        overrides = (f"engine.precision={precision}", *overrides)
    if targets:
        overrides = (*overrides, f"engine.targets={json.dumps(targets)}")
    settings = load_engine_recipe(recipe or precision or "fp16", overrides)
    manifest = prepare(with_root(where.recipe().data, data))
    bundle, failures = build(where, settings, choose_backend() if backend == "auto" else backend, manifest)
    info = bundle.info
    verification = info.verification or {}
    facts = {
        "engine": str(bundle.path),
        "backend": f"{info.backend} {info.backend_version}",
        "compared by": verification["by"],
        "clips": verification["clips"],
        "agreement": verification["agreement"],
        "top-1, PyTorch": verification["top1_model"],
        "top-1, engine": verification["top1_engine"],
    }
    print_facts(info.model_dump(mode="json") if as_json else facts, as_json)
    if failures:
        raise UserError(f"the engine is not good enough, and kept apart in '{bundle.path}': {'; '.join(failures)}")
