"""Engine bundles: folders with all files that `score` needs, which are checked before any of them is used.

runs/NAME/engines/PRECISION/
  model.onnx        the ONNX graph
  engine.*          the engine that the backend built from it
  bundle.json       model, target machine, verification results, and the SHA-256 of each file
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ssv2rt.core.errors import UserError, suggest
from ssv2rt.core.recipes import BatchProfile, Clip
from ssv2rt.core.run_folders import Run

INFO = "bundle.json"
FAILED = ".failed"
"""Suffix of the folder of a bundle that did not pass its gate."""
FORMAT = 1


class BundleInfo(BaseModel):
    """The content of `bundle.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    backend: str
    backend_version: str
    precision: str
    target: str
    """What the engine was built for: a GPU architecture such as sm90, or the CPU's name."""
    model: str
    input: str
    input_shape: tuple[str | int, ...]
    batch: BatchProfile
    clip: Clip
    labels: tuple[str, ...]
    embedding: Annotated[int, Field(ge=0)] = 0
    """Size of the embedding that the engine outputs beside the logits; 0 if it has no such output."""
    weights_sha256: str
    """SHA-256 of the checkpoint or ONNX file that the engine was built from."""
    files: dict[str, str]
    """SHA-256 of each file of the bundle, by name."""
    onnx_file: str
    engine_file: str
    settings: dict[str, Any] = {}
    """Settings that the backend needs to run the engine as it was verified."""
    calibration: dict[str, Any] | None = None
    verification: dict[str, Any] | None = None
    rebuild: str
    """The command that rebuilds this bundle."""

    @field_validator("labels")
    @classmethod
    def _are_text(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        for label in labels:
            label.encode()  # a lone surrogate, which JSON can hold, could not be written to an output
        return labels


@dataclass(frozen=True)
class Bundle:
    """A bundle folder and its description."""

    path: Path
    info: BundleInfo
    digest: str = ""
    """SHA-256 of `bundle.json`, and so of all that the bundle holds; empty if it was not read from there."""

    @property
    def engine_file(self) -> Path:
        return self.path / self.info.engine_file

    @property
    def onnx_file(self) -> Path:
        return self.path / self.info.onnx_file


def open_bundle(path: Path) -> Bundle:
    """Reads `bundle.json` and checks the hash of every file. No engine or graph is deserialized before that.

    Raises:
        UserError: the folder is not a bundle, a file is missing or altered, or the format is unknown.
    """
    if not (path / INFO).is_file():
        raise UserError(f"no engine bundle in '{path}'; make one with `ssv2rt build-engine`")
    try:
        content = (path / INFO).read_bytes()
        raw = json.loads(content)
        if isinstance(raw, dict) and raw.get("format", FORMAT) != FORMAT:
            raise UserError(
                f"{path / INFO}: format {raw['format']} is not {FORMAT}, which this version reads; rebuild it"
            )
        info = BundleInfo.model_validate(raw)
    except UserError:
        raise
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError(f"{path / INFO} is damaged (at '{where}'); rebuild it with `ssv2rt build-engine`") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path / INFO} is damaged ({reason}); rebuild it with `ssv2rt build-engine`") from None
    for name, expected in info.files.items():
        file = path / name
        if Path(name).name != name or not file.is_file():
            raise UserError(f"{path}: '{name}' is missing; rebuild it with `{info.rebuild}`")
        if sha256(file) != expected:
            raise UserError(
                f"{file} is not the file that was built: its SHA-256 differs; rebuild it with `{info.rebuild}`"
            )
    clip = info.clip
    if info.input_shape[1:] != (clip.frames, clip.size, clip.size, 3):
        raise UserError(f"{path / INFO}: input shape and clip disagree; rebuild it with `{info.rebuild}`")
    present = {file.name for file in path.iterdir()} - {INFO}
    for name in sorted({info.engine_file, info.onnx_file} | present):
        if name not in info.files:
            raise UserError(f"{path / INFO}: no hash for '{name}'; rebuild it with `{info.rebuild}`")
    return Bundle(path, info, hashlib.sha256(content).hexdigest())


def find_bundle(run: Run, precision: str | None = None) -> Path:
    """The bundle folder of a run's newest engine, or of its engine with the given precision.

    Raises:
        UserError: the run has no such engine.
    """
    found = {p.parent.name: p for p in run.engines.glob(f"*/{INFO}")}
    found = {name: p for name, p in found.items() if not name.startswith(".") and not name.endswith(FAILED)}
    if precision is not None:
        if precision not in found:
            raise UserError(
                f"run '{run.path}' has no engine '{precision}'{suggest(precision, sorted(found))}; "
                "make one with `ssv2rt build-engine`"
            )
        return found[precision].parent
    if not found:
        raise UserError(f"run '{run.path}' has no engine yet; make one with `ssv2rt build-engine --fp16`")
    return max(found.values(), key=lambda path: path.stat().st_mtime_ns).parent


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
