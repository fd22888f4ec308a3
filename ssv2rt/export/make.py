"""Exports an engine or an output of scoring to the form that another program takes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssv2rt.core.errors import UsageError, UserError, suggest
from ssv2rt.core.run_folders import find_run, known_runs
from ssv2rt.engines.bundle import INFO, PRECISIONS, Bundle
from ssv2rt.engines.find import engine_named, find_engine
from ssv2rt.export.labelstudio import configuration_file, export_labelstudio
from ssv2rt.export.onnx_file import export_onnx_file
from ssv2rt.export.triton import export_triton

_OPTIONS = {
    "name": "triton",
    "backend": "triton",
    "input": "onnx",
    "files_root": "labelstudio",
    "run": "triton or onnx",
}
"""The options that are for one form alone."""


@dataclass(frozen=True)
class ExportRequest:
    """What `ssv2rt export` is asked for; values are None unless they were given."""

    source: str | None
    to: str
    out: Path
    run: str | None = None
    name: str | None = None
    """triton: of the model."""
    backend: str | None = None
    """triton: of Triton."""
    input: str | None = None
    """onnx: uint8 or float."""
    files_root: Path | None = None
    """labelstudio: what it serves as local files."""
    overwrite: bool = False

    def __post_init__(self) -> None:
        for option, forms in _OPTIONS.items():
            if getattr(self, option) is not None and self.to not in forms.split(" or "):
                raise UsageError(
                    f"--{option.replace('_', '-')} goes with --to {forms}, not with {self.to}; leave it out"
                )
        suffix = {"onnx": ".onnx", "labelstudio": ".json"}.get(self.to)
        if suffix is None:
            if os.path.lexists(self.out) and not self.out.is_dir():
                raise UsageError(f"--out {self.out} is not a folder; name a model repository, or a new one")
            return
        if self.out.suffix.lower() != suffix:
            raise UsageError(f"--out {self.out}: --to {self.to} writes a file; give a name that ends in {suffix}")
        if not self.out.parent.is_dir():
            raise UsageError(f"--out {self.out}: no folder '{self.out.parent}'; make it first")
        for file in (self.out, configuration_file(self.out))[: 1 + (self.to == "labelstudio")]:
            if os.path.lexists(file) and not (self.overwrite and file.is_file()):
                raise UsageError(f"--out {self.out}: '{file}' exists; choose another name, or add --overwrite")


def export_as_requested(request: ExportRequest) -> dict[str, Any]:
    """Exports what a request names.

    Returns:
        Facts to print.

    Raises:
        UsageError: options do not go together, or the output exists.
        UserError: there is no such source, or it cannot be exported in this form.
    """
    if request.to == "labelstudio":
        if request.source is None:
            raise UsageError("--to labelstudio: name an output of `ssv2rt score`")
        facts = export_labelstudio(Path(request.source), request.out, request.files_root or Path("/"))
        return {"out": str(request.out), **facts}
    bundle = _engine(request.source, request.run)
    if request.to == "triton":
        facts = export_triton(
            bundle, request.out, name=request.name, backend=request.backend, overwrite=request.overwrite
        )
    else:
        facts = export_onnx_file(bundle, request.out, "float" if request.input == "float" else "uint8")
    return {"out": str(request.out), "engine": str(bundle.path), **facts}


def _engine(source: str | None, run: str | None) -> Bundle:
    """The engine of a name, a folder, or a run; by default the newest."""
    if source is None or run is not None:
        return engine_named(source, run)
    path, runs = Path(source), known_runs(for_engine=True)
    if source in runs or (path.is_dir() and not (path / INFO).is_file()):
        return find_engine(find_run(source, for_engine=True))
    if path.name == source and not path.exists() and source.partition("-")[0] not in PRECISIONS:
        raise UserError(f"no engine or run '{source}'{suggest(source, runs)}; name an engine's folder or a run")
    return engine_named(source, run)
