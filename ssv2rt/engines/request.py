"""What a call of `build-engine` asks for, checked before anything is read, and how it is carried out."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.core.recipe_files import load_engine_recipe
from ssv2rt.core.recipes import Data, EngineRecipe
from ssv2rt.core.run_folders import engines_of_file, find_run
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.dataset.prepare import is_here, override_root, prepare
from ssv2rt.engines.backends.registry import NAMES, backend, choose_backend
from ssv2rt.engines.build import build_engine_from_source
from ssv2rt.engines.bundle import INFO, PRECISIONS, Bundle, read_info
from ssv2rt.engines.calibration import ChosenClips
from ssv2rt.engines.normalization import Colors, Normalization, normalization
from ssv2rt.engines.onnx_source import source_of_onnx
from ssv2rt.engines.precision import CALIBRATED_PRECISIONS
from ssv2rt.engines.source import Source, source_of_run
from ssv2rt.engines.unlabeled import clips_of_videos, clips_without_data

logger = logging.getLogger(__name__)


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
    normalize: str | None = None
    mean: str | None = None
    std: str | None = None
    scale: float | None = None
    colors: Colors | None = None
    data: Path | None = None
    calibrate_on: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    debug_layers: bool = False

    def __post_init__(self) -> None:
        if self.backend not in ("auto", *NAMES):
            raise UsageError(f"--backend {self.backend}: there are auto, {', '.join(NAMES)}")
        if self.onnx and self.run:
            raise UsageError(
                f"--onnx {self.onnx} with run '{self.run}' as well: give --onnx FILE --labels FILE, or a run"
            )
        for name in ("labels", "normalize", "mean", "std", "scale", "colors"):
            if (value := getattr(self, name)) is not None and not self.onnx:
                raise UsageError(
                    f"--{name} {value} is for --onnx; a run has its own labels and normalization; leave it out"
                )
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

    def normalization(self) -> Normalization | None:
        """What the options say of the pixels of an ONNX file; None if they say nothing.

        Raises:
            UsageError: as `normalization.normalization`.
        """
        return normalization(self.normalize, self.mean, self.std, self.scale)

    def options_to_rebuild(self) -> list[str]:
        """What the command that rebuilds the engine has beside network, precision, backend and targets."""
        options = [*(("--data", str(self.data)) if self.data else ())]
        for name in ("normalize", "mean", "std", "scale", "colors"):
            value = getattr(self, name)
            options += [f"--{name}", str(value).removesuffix(".0")] if value is not None else []
        options += [part for name in self.calibrate_on for part in ("--calibrate-on", name)]
        options += [*(("--recipe", self.recipe) if self.recipe else ())]
        options += [part for override in self.overrides for part in ("--set", override)]
        options += ["--max-drop", f"{self.max_drop:g}"] if self.max_drop is not None else []
        return options


def requests_for(*, max_drop: float | None, calibrate_on: tuple[str, ...] = (), **options: Any) -> list[BuildRequest]:
    """What a call asks for: an engine for each precision that is named, or one as the recipe says.

    Args:
        max_drop: see `BuildRequest`; of several precisions it is for those that are calibrated.
        calibrate_on: the same.
        options: the command's: a flag for each precision, and the fields of `BuildRequest`.

    Raises:
        UsageError: see `BuildRequest`; before anything is built.
    """
    precisions: list[str | None] = [name for name in PRECISIONS if options.pop(name)]
    precisions = precisions or [None]
    concerned = [name for name in precisions if name in CALIBRATED_PRECISIONS] or precisions
    return [
        BuildRequest(precision=name, max_drop=max_drop, calibrate_on=calibrate_on, **options)
        if name in concerned
        else BuildRequest(precision=name, **options)
        for name in precisions
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
    if request.calibrate_on and precision not in CALIBRATED_PRECISIONS:
        raise UsageError(f"--calibrate-on {request.calibrate_on[0]} is for --int8 and --fp8; {precision} needs none")
    if request.onnx:
        source = source_of_onnx(
            request.onnx,
            request.labels,
            normalization=request.normalization(),
            colors=request.colors,
            reading=recipe.clip,
        )
        folder, data = engines_of_file(request.onnx), Data()
        _refuse_engines_of_another_file(folder, request.onnx, source.sha256)
    else:
        if changed := sorted(recipe.clip.model_fields_set):
            raise UsageError(
                f"clip.{changed[0]} is for --onnx: an engine of a run reads clips as the run does; leave it out"
            )
        run = find_run(request.run)
        source, folder, data = source_of_run(run), run.engines, run.recipe().data
    return build_engine_from_source(
        source,
        folder,
        recipe,
        backend_name,
        _clips(request, override_root(data, request.data), source, recipe),
        options=request.options_to_rebuild(),
        debug=folder / f"{precision}-{backend_name}-layers" if request.debug_layers else None,
    )


def _refuse_engines_of_another_file(folder: Path, file: Path, sha256: str) -> None:
    """Raises UserError if a folder has engines of an ONNX file of the same name in another folder, and other content."""
    for path in sorted(folder.glob(f"*/{INFO}")):
        try:
            info = read_info(path)
        except (UserError, OSError):
            continue  # nobody can score with it
        theirs = (info.imported or {}).get("file", "")
        if theirs and theirs != str(file.resolve()) and info.weights_sha256 != sha256:
            raise UserError(
                f"the engines of '{file}' go to '{folder}', where those of '{theirs}' are; give one of the files "
                f"another name, or remove '{folder.parent}'"
            )


def _clips(request: BuildRequest, data: Data, source: Source, recipe: EngineRecipe) -> Manifest | ChosenClips:
    """The data set; or the clips that take its place where there is none, or where it is not for calibration.

    Raises:
        UsageError, UserError: the precision needs calibration, and there is nothing for it.
    """
    manifest = prepare(data) if request.data is not None or is_here(data) else None
    if request.calibrate_on:
        return clips_of_videos(source, request.calibrate_on, recipe, manifest)
    if manifest:
        return manifest
    missing = f"the data of '{source.name}' is not here ('{data.root}')" if data.root else "there is no --data"
    if (precision := recipe.engine.precision) in CALIBRATED_PRECISIONS:
        raise (UserError if data.root else UsageError)(
            f"{precision} is calibrated on clips, and {missing}; give --data DIR, or --calibrate-on with a folder of videos, "
            "which need no labels"
        )
    logger.warning(f"{missing}: the engine is compared on generated clips")
    return clips_without_data(source, recipe)
