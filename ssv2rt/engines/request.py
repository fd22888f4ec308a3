"""What a call of `build-engine` asks for, checked before anything is read, and how it is carried out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssv2rt.core.errors import UsageError
from ssv2rt.core.recipe_files import load_engine_recipe
from ssv2rt.core.recipes import Data, EngineRecipe
from ssv2rt.core.run_folders import RUNS, find_run
from ssv2rt.dataset.prepare import override_root, prepare
from ssv2rt.engines.backends.registry import NAMES, backend, choose_backend
from ssv2rt.engines.build import build_engine_from_source
from ssv2rt.engines.bundle import Bundle
from ssv2rt.engines.precision import CALIBRATED_PRECISIONS
from ssv2rt.engines.source import source_of_onnx, source_of_run

PRECISIONS = ("fp32", "bf16", "fp16", "int8", "fp8")


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """The options of `build-engine`, under the names that the command has them.

    Raises:
        UsageError: two options exclude each other, or one lacks another.
    """

    run: str | None = None
    precision: str | None = None
    max_drop: float | None = None
    onnx: Path | None = None
    labels: Path | None = None
    recipe: str | None = None
    backend: str = "auto"
    targets: tuple[str, ...] = ()
    data: Path | None = None
    overrides: tuple[str, ...] = ()
    debug_layers: bool = False

    def __post_init__(self) -> None:
        if self.backend not in ("auto", *NAMES):
            raise UsageError(f"--backend {self.backend}: there are auto, {', '.join(NAMES)}")
        if self.onnx and (self.run or not self.labels or not self.data):
            if self.run:
                wrong = f"run '{self.run}' as well"
            else:
                wrong = "no --data, whose clips it is compared on" if self.labels else "no --labels"
            raise UsageError(f"--onnx {self.onnx} with {wrong}: give --onnx FILE --labels FILE --data DIR, or a run")
        if self.debug_layers and self.precision == "bf16":
            raise UsageError(
                "--debug-layers with --bf16: ONNX Runtime, which compares layers, computes no bf16; take --fp16"
            )
        if self.max_drop is not None and self.precision not in CALIBRATED_PRECISIONS:
            raise UsageError(
                f"--max-drop {self.max_drop:g} is for --int8 and --fp8, which lose accuracy; give one of them"
            )

    def engine_recipe(self) -> EngineRecipe:
        """The recipe with all that the options change of it.

        Raises:
            UsageError: as `load_engine_recipe`.
        """
        overrides = self.overrides
        if self.max_drop is not None:
            overrides = (f"calibration.max_drop={self.max_drop}", f"gate.max_top1_drop={self.max_drop}", *overrides)
        if self.precision:
            overrides = (f"engine.precision={self.precision}", *overrides)
        if self.targets:
            overrides = (*overrides, f"engine.targets={json.dumps(self.targets)}")
        return load_engine_recipe(self.recipe or self.precision or "fp16", overrides)

    def options_to_rebuild(self) -> list[str]:
        """What the command that rebuilds the engine has beside network, precision, backend and targets."""
        options = [*(("--data", str(self.data)) if self.data else ())]
        options += [*(("--recipe", self.recipe) if self.recipe else ())]
        options += [part for override in self.overrides for part in ("--set", override)]
        options += ["--max-drop", f"{self.max_drop:g}"] if self.max_drop is not None else []
        return options


def requests_for(*, max_drop: float | None, **options: Any) -> list[BuildRequest]:
    """What a call asks for: an engine for each precision that is named, or one as the recipe says.

    Args:
        max_drop: see `BuildRequest`; of several precisions it is for those that it concerns.
        options: the command's: a flag for each precision, and the fields of `BuildRequest`.

    Raises:
        UsageError: see `BuildRequest`; before anything is built.
    """
    precisions: list[str | None] = [name for name in PRECISIONS if options.pop(name)]
    precisions = precisions or [None]
    concerned = [name for name in precisions if name in CALIBRATED_PRECISIONS] or precisions
    return [
        BuildRequest(precision=name, max_drop=max_drop if name in concerned else None, **options) for name in precisions
    ]


def build_as_requested(request: BuildRequest) -> tuple[Bundle, list[str]]:
    """Builds an engine as a request says.

    Returns:
        As `build_engine_from_source`.

    Raises:
        UsageError: a setting of the recipe is out of range.
        UserError: there is no run or data; or as `build_engine_from_source`.
    """
    recipe = request.engine_recipe()
    precision = recipe.engine.precision
    backend_name = choose_backend(precision) if request.backend == "auto" else request.backend
    engine_backend = backend(backend_name)
    if not engine_backend.cannot_build_reason():
        engine_backend.target_of(recipe.engine)  # refuses options before anything is read
    if request.onnx:
        assert request.labels is not None
        source = source_of_onnx(request.onnx, request.labels)
        folder, data = RUNS / request.onnx.stem / "engines", Data()
    else:
        run = find_run(request.run)
        source, folder, data = source_of_run(run), run.engines, run.recipe().data
    manifest = prepare(override_root(data, request.data))
    return build_engine_from_source(
        source,
        folder,
        recipe,
        backend_name,
        manifest,
        options=request.options_to_rebuild(),
        debug=folder / f"{precision}-{backend_name}-layers" if request.debug_layers else None,
    )
