"""Engine bundles: folders with all files that `score` needs, which are checked before any of them is used.

runs/NAME/engines/PRECISION-BACKEND[-TARGET]/
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

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from ssv2rt.core.errors import UserError, os_errors_as_user_errors
from ssv2rt.core.recipes import BatchProfile, Clip
from ssv2rt.engines.normalization import Colors

INFO = "bundle.json"
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "fp8")
FAILED = ".failed"
"""Suffix of the folder of a bundle that did not pass its gate."""
FORMAT = 1


class SettingFacts(TypedDict, total=False):
    """`BundleInfo.settings`: what the backend needs to run the engine as it was verified, and what it found."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    arithmetic: str
    """OpenVINO, AOTInductor: the floating-point type that it computes in."""
    hint: str
    """OpenVINO."""
    threads: Annotated[int, Field(ge=0, le=1024)]
    """OpenVINO, AOTInductor."""
    clips_per_second: dict[str, float]
    """OpenVINO, AOTInductor: the measured rate in each arithmetic."""
    cuda_graph: bool
    """TensorRT."""
    version_compatible: bool
    """TensorRT."""
    layers: dict[str, dict[str, int]]
    """TensorRT: number of convolutions by precision."""


class CalibrationFacts(TypedDict, total=False):
    """`BundleInfo.calibration`: the recipe's settings, and what `sensitivity.choose_blocks` found."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    clips: int
    method: str
    seed: int
    max_drop: float | None
    stem: bool
    head: bool
    clips_from: str
    """Where the clips are from, in words."""
    kept: tuple[str, ...]
    sensitivity: dict[str, float]
    drop_without_any: float
    drop: float


class ImportFacts(TypedDict, total=False):
    """`BundleInfo.imported`: what was given and what was assumed about a network from an ONNX file."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    file: str
    """The ONNX file, as an absolute path on the machine where the engine was built."""
    mean: tuple[float, float, float]
    """This and the next two: the normalization that was added to a graph with float input; see `Normalization`."""
    std: tuple[float, float, float]
    scale: float
    colors: Colors
    """The order of colors that a graph with float input takes."""
    cut: str
    """The operator that was cut off the end."""
    assumed: tuple[str, ...]
    """The settings that nobody gave: names of the above, and keys of the recipe."""


class GateFacts(TypedDict, total=False):
    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    clips: int
    min_agreement: float
    max_top1_drop: float


class VerificationFacts(TypedDict, total=False):
    """`BundleInfo.verification`: the fields of `verify.Verification`, the gate, and the rates of a quantized engine."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    by: str
    reference: str
    """What computed the fp32 network: PyTorch or ONNX Runtime."""
    clips: int
    clips_from: str
    """Where the clips are from, in words: "validation split"."""
    notes: list[str]
    """What was not measured, or on fewer clips than the gate asks for."""
    agreement: float
    top1_model: float | None
    """None, like what follows from it, if the clips have no labels."""
    top1_engine: float | None
    top1_drop: float | None
    largest_difference: float
    mean_difference: float
    embedding_similarity: float | None
    finite: bool
    gate: GateFacts
    failures: list[str]
    clips_per_second: float
    clips_per_second_fp16: float


def _typed(facts: Any) -> AfterValidator:
    """Checks a dictionary by a `TypedDict`."""
    return AfterValidator(TypeAdapter(facts).validate_python)


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
    input_shape: tuple[str, int, int, int, int]
    batch: BatchProfile
    clip: Clip
    labels: tuple[str, ...]
    embedding: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Size of the embedding that the engine outputs beside the logits; 0 if it has no such output."""
    weights_sha256: str
    """SHA-256 of the checkpoint or ONNX file that the engine was built from."""
    files: dict[str, str]
    """SHA-256 of each file of the bundle, by name."""
    onnx_file: str
    engine_file: str
    settings: Annotated[dict[str, Any], _typed(SettingFacts)] = {}
    calibration: Annotated[dict[str, Any], _typed(CalibrationFacts)] | None = None
    verification: Annotated[dict[str, Any], _typed(VerificationFacts)] | None = None
    rebuild: str
    """The command that rebuilds this bundle."""
    imported: Annotated[dict[str, Any], _typed(ImportFacts)] | None = None
    """For a network from an ONNX file of another program."""

    @property
    def on_gpu(self) -> bool:
        """Whether the engine runs on a GPU, and takes its clips there."""
        return self.target.startswith("sm")


def bundle_name(precision: str, backend: str, target: str) -> str:
    """Name of the folder of a bundle, such as int8-openvino or fp16-tensorrt-sm90: each kind of engine has its own.

    Args:
        precision: of the engine.
        backend: name of its backend.
        target: as `BundleInfo.target`. Engines for CPUs run on other CPUs too, and are not named after them.
    """
    return "-".join([precision, backend, *(target.split(",") if target.startswith("sm") else ())])


@dataclass(frozen=True)
class Bundle:
    """An engine in its folder."""

    path: Path
    """The folder. `ssv2rt.load` takes it."""
    info: BundleInfo
    """The content of `bundle.json`, with backend, precision, labels, clip settings and results of the comparison."""
    digest: str = ""
    """SHA-256 of `bundle.json`, and so of all that the bundle holds; empty if it was not read from there."""

    def __repr__(self) -> str:
        return f"<Bundle '{self.path}': {self.info.model}, {self.info.precision} by {self.info.backend}>"

    @property
    def engine_file(self) -> Path:
        """The file that the backend loads."""
        return self.path / self.info.engine_file

    @property
    def onnx_file(self) -> Path:
        """The ONNX graph that the engine was built from."""
        return self.path / self.info.onnx_file


def open_bundle(path: Path) -> Bundle:
    """Reads `bundle.json` and checks the hash of every file. No engine or graph is deserialized before that.

    Raises:
        UserError: the folder is not a bundle, a file is missing or altered, or the format is unknown.
    """
    with os_errors_as_user_errors(f"cannot read the engine in '{path}'"):
        return _open_bundle(path)


def _open_bundle(path: Path) -> Bundle:
    if not (path / INFO).is_file():
        raise UserError(f"no engine bundle in '{path}'; make one with `ssv2rt build-engine`")
    content = (path / INFO).read_bytes()
    info = _parse(path / INFO, content)
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
    # What the backend or ONNX would read beside these files, such as engine.bin; other files are not the bundle's.
    stems = {info.engine_file.partition(".")[0], info.onnx_file.partition(".")[0]}
    read = {file.name for file in path.iterdir() if file.name.partition(".")[0] in stems}
    for name in sorted({info.engine_file, info.onnx_file} | read):
        if name not in info.files:
            raise UserError(f"{path / INFO}: no hash for '{name}'; rebuild it with `{info.rebuild}`")
    return Bundle(path, info, hashlib.sha256(content).hexdigest())


def read_info(file: Path) -> BundleInfo:
    """Reads a `bundle.json`.

    Raises:
        UserError: it is damaged, or of another format.
        OSError: it cannot be read.
    """
    return _parse(file, file.read_bytes())


def _parse(file: Path, content: bytes) -> BundleInfo:
    try:
        raw = json.loads(content)
        json.dumps(raw, ensure_ascii=False).encode()  # ValueError: a lone surrogate, which no output could hold
        found = raw.get("format", FORMAT) if isinstance(raw, dict) else FORMAT
        if isinstance(found, int) and found != FORMAT:
            raise UserError(
                f"{file}: format {found} is not {FORMAT}, which this version reads; rebuild it, or update ssv2rt"
            )
        return BundleInfo.model_validate(raw)
    except UserError:
        raise
    except ValidationError as error:
        reason = f"at '{'.'.join(str(part) for part in error.errors(include_input=False)[0]['loc'])[:100]}'"
    except (ValueError, RecursionError) as error:
        reason = str(error)[:100]
    raise UserError(f"{file} is damaged ({reason}); rebuild it with `ssv2rt build-engine`") from None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
