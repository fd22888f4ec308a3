"""Recipes: every setting of a run or of an engine, typed and checked."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ssv2rt.core.errors import UsageError, nearest

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Ratio = Annotated[float, Field(ge=0.1, le=10)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0.01, le=1)]
BatchSize = Annotated[int, Field(ge=1, le=4096)]
Positive = Annotated[int, Field(ge=1)]
R = TypeVar("R", bound="BaseModel")


class Section(BaseModel):
    """One table of a recipe. An unknown key is an error; values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Synthetic(Section):
    """A synthetic set of time-reversed twins, written to the user's cache on first use."""

    clips: Annotated[int, Field(ge=30, le=10_000_000)] = 1000
    """Clips in all three splits together. Even: clips come in pairs of twins."""
    width: Annotated[int, Field(ge=32, le=4096)] = 427
    """Pixels."""
    height: Annotated[int, Field(ge=32, le=4096)] = 240
    """Pixels."""
    frames: tuple[Annotated[int, Field(ge=2, le=100_000)], Annotated[int, Field(ge=2, le=100_000)]] = (24, 60)
    """The fewest and the most frames of a clip."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _check(self) -> Synthetic:
        if self.clips % 2:
            raise ValueError(f"clips = {self.clips}: clips come in pairs of twins; take an even number")
        if self.frames[0] > self.frames[1]:
            raise ValueError(f"frames = {list(self.frames)}: the fewest comes first; swap the two")
        return self


class Data(Section):
    """Where the clips come from, and how they are read."""

    root: str = ""
    """SSv2's folder, a folder of classes, or a table of paths and labels. Empty only with `synthetic`."""
    synthetic: Synthetic | None = None
    """Make this set in the user's cache and train on it. Excludes `root`."""
    test_videos: str = ""
    """With `synthetic`: put the held-out test clips into this folder, to have something to score, unless it exists."""
    max_bad: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Largest share of missing and undecodable clips; above it the run stops."""
    decoder: Literal["auto", "pyav", "dali", "nvdec"] = "auto"
    """auto: NVDEC through DALI on a GPU (VP8, VP9, H.264), PyAV on CPU. dali: DALI's CPU decoder (VP8, VP9). PyAV decodes
    the rest."""
    verify_decoder: bool = True
    """Decode the first clips of each kind that DALI decodes by PyAV, too, at most 4 of a kind, and leave a kind that differs
    to PyAV."""
    cpu_share: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the clips that PyAV decodes on the CPU where DALI decodes the others. Which ones follows from their names.
    Without it, training on a GPU with `decoder = "auto"` measures a fair share on its first batch, unless it is to be
    deterministic; all else takes 0."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """Threads for decoding. 0: one for each core, shared between the processes of this machine."""
    prefetch: Annotated[int, Field(ge=1, le=100)] = 3
    """Batches that are decoded before they are asked for."""
    readers: Annotated[int, Field(ge=1, le=1024)] = 16
    """Files that are opened at the same time; many hide the delays of slow storage."""
    read_ahead: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """MiB of files that are read before they are decoded."""

    @model_validator(mode="after")
    def _check(self) -> Data:
        if self.root and self.synthetic:
            raise ValueError(f"root = '{self.root}' and synthetic exclude each other; remove one of them")
        return self


class Clip(Section):
    """What the network sees of a video. Goes into every engine bundle."""

    frames: Annotated[int, Field(ge=1, le=1024)] = 16
    size: Annotated[int, Field(ge=16, le=1024)] = 224
    """Height and width of a clip in pixels."""
    sampling: Literal["segments", "uniform", "dense"] = "segments"
    """segments: a frame of each of `frames` equal parts of the video, each at a place of its own (TSN, Wang et al. 2016).
    uniform: at the same place in each part. dense: `stride` frames apart."""
    stride: Annotated[float, Field(gt=0, le=1000)] = 2.0
    """Dense sampling: distance of two frames."""
    timing: Literal["index", "time"] = "index"
    """time: places are counted in seconds, not in frames. It matters where the frame rate varies, or varies from video to
    video; `stride` is then in frames of `rate`."""
    rate: Annotated[float, Field(gt=0, le=1000)] = 12.0
    """Frames per second, for `timing = "time"`."""
    center_crop: Fraction = 0.875
    """Evaluation and scoring look at squares of this share of the shorter side."""
    views: tuple[Annotated[int, Field(ge=1, le=100)], Annotated[int, Field(ge=1, le=100)]] = (1, 1)
    """Evaluation and scoring look at so many moments, and so many squares along the longer side, and average."""

    def one_view(self) -> Clip:
        """The same clip, looked at once, as training does."""
        return self.model_copy(update={"views": (1, 1)})


class Augment(Section):
    """Random changes to training clips; every draw is keyed by (seed, epoch, clip)."""

    crop_scale: tuple[Share, Share] = (0.4, 1.0)
    """Smallest and largest area of the random crop, as a share of the frame."""
    crop_ratio: tuple[Ratio, Ratio] = (3 / 4, 4 / 3)
    """Narrowest and widest aspect ratio (width over height) of the random crop."""
    flip: Literal["label-aware", "never"] = "label-aware"
    """label-aware: mirror half of the clips, swapping labels that mention left and right."""
    color: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Strength of the brightness, contrast and saturation change; hue turns by a quarter of it, in half turns."""
    grayscale: Probability = 0.0
    """Share of the clips that lose their colour."""
    erase: Probability = 0.0
    """Share of the clips that lose a rectangle, the same in all frames (Random Erasing, Zhong et al. 2020)."""
    erase_area: tuple[Share, Share] = (0.02, 0.33)
    """Smallest and largest area of that rectangle, as a share of the clip."""
    speed: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Jitter of the frame rate. Dense sampling: the stride is stretched by up to this share, either way. Otherwise the clip
    is taken from a stretch of the video that is up to this share shorter than all of it."""

    @model_validator(mode="after")
    def _check(self) -> Augment:
        for name in ("crop_scale", "crop_ratio", "erase_area"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} = [{low}, {high}]: the smaller comes first; swap the two")
        return self

    @property
    def has_pixel_augment(self) -> bool:
        """Whether clips are changed after they are cut: mirrored, recoloured or erased."""
        return self.flip != "never" or self.color > 0 or self.grayscale > 0 or self.erase > 0


class Model(Section):
    """The network. Its number of classes comes from the labels."""

    name: str = "resnet3d18"
    width: Annotated[int, Field(ge=4, le=512)] = 64
    """Channels after the stem; the later stages have 2, 4 and 8 times as many."""
    temporal_strides: tuple[Literal[1, 2], Literal[1, 2], Literal[1, 2], Literal[1, 2]] = (1, 1, 1, 1)
    """Stride in time of the four stages. All 1 keeps time to the end; (1, 2, 2, 2) is torchvision's r3d_18."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Dropout before the classifier."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """ResNets: share of the clips that skip the last residual block in training, less for earlier ones (Huang et al. 2016)."""
    checkpointing: bool = False
    """ResNets: keep less for the way back, and compute it again; for clips that do not fit into memory."""
    init: str = ""
    """Weights to begin with: a .safetensors or .pth file, or the name of published ones, such as r3d_18 or resnet50."""
    inflate: Literal["mean", "centre"] = "mean"
    """How 2D weights are spread over time: evenly, or all in the middle (Carreira and Zisserman 2017)."""


def _number_or_auto(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError("must be greater than or equal to 1, or 'auto'")


class Train(Section):
    """The optimisation."""

    epochs: Positive = 50
    batch_size: Annotated[int | Literal["auto"], BeforeValidator(_number_or_auto)] = 8
    """Clips per step and device. auto: the largest batch that fits into memory of those that divide `update_clips`, tried on a
    GPU, counted and at most 32 on a CPU. It is written into the run's recipe with the `accumulate` that goes with it."""
    update_clips: Positive = 64
    """With batch_size = "auto": clips of one change of the weights on each device, which learning_rate is for."""
    accumulate: Positive = 1
    """Steps whose gradients are summed for one change of the weights."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the device computes it natively, else fp16 on a GPU and fp32 on a CPU."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd is SGD with Nesterov momentum."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Peak rate, reached after the warm-up, for a batch of batch_size * accumulate clips."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Not applied to biases and norms."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Largest norm of the gradient; 0 leaves it as it is."""
    scale_rate: Literal["linear", "sqrt", "none"] = "linear"
    """How learning_rate grows with the number of processes, whose batches add up (linear: Goyal et al. 2017)."""
    sync_bn: bool = False
    """Batch norm over the batches of all processes."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay, per update, of a running average of the weights, which is then what is evaluated and exported; 0 is none."""
    mixup: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Blend pairs of clips and their labels, with a share from Beta(mixup, mixup) (Zhang et al. 2018); 0 does not."""
    cutmix: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Paste a rectangle of another clip, of a share from Beta(cutmix, cutmix) (Yun et al. 2019); or mixup, if both."""
    freeze_backbone: bool = False
    """Train the classifier only."""
    log_every: Positive = 20
    """Changes of the weights between two lines of metrics.jsonl; there is one at the end of every epoch, too."""
    tensorboard: bool = False
    """Also write for TensorBoard, into the run's folder."""
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 15.0
    """Longest time between two checkpoints; there is one at the end of every epoch, too."""
    compile: bool = False
    """Compile the network with torch.compile."""
    deterministic: bool = False
    """Take only algorithms that give the same bits every time, also on a GPU, where they are slower."""
    seed: Seed = 0

    @property
    def batch(self) -> int:
        """`batch_size` as a number.

        Raises:
            UsageError: it is "auto", and nobody has found the number.
        """
        if self.batch_size == "auto":
            raise UsageError("train.batch_size = 'auto': only `ssv2rt train` finds a number for it; give one here")
        return self.batch_size

    @model_validator(mode="after")
    def _check(self) -> Train:
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs = {self.warmup_epochs:g} is longer than the run of {self.epochs} epochs; shorten it"
            )
        return self


class Recipe(Section):
    """A training run: `pipelines/NAME.toml`."""

    data: Data = Data()
    clip: Clip = Clip()
    augment: Augment = Augment()
    model: Model = Model()
    train: Train = Train()


class BatchProfile(Section):
    """Batch sizes of an engine: the range it takes, and the one it is tuned for."""

    min: BatchSize = 1
    best: BatchSize = 8
    max: BatchSize = 16

    @model_validator(mode="after")
    def _check(self) -> BatchProfile:
        if not self.min <= self.best <= self.max:
            raise ValueError(f"min = {self.min}, best = {self.best}, max = {self.max}: they must not decrease")
        return self


class Engine(Section):
    precision: Literal["fp32", "bf16", "fp16", "int8", "fp8"] = "fp16"
    batch: BatchProfile = BatchProfile()
    workspace_gib: Annotated[float, Field(gt=0)] = 4.0
    """TensorRT: memory that tactics may use."""
    optimization_level: Annotated[int, Field(ge=0, le=5)] = 3
    """TensorRT: builder effort."""
    version_compatible: bool = False
    """TensorRT: an engine that later versions load too; it may be slower. TensorRT for RTX has no such engines."""
    hardware_compatible: bool = False
    """TensorRT: an engine that all GPUs since Ampere load, not only those of one architecture; it may be slower. TensorRT for
    RTX is told the GPUs by --target."""
    cuda_graph: bool = True
    """TensorRT: record the work of a full batch once, and replay it."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """OpenVINO and AOTInductor on a CPU: threads that compute. 0: one a core."""
    hint: Literal["latency", "throughput"] = "latency"
    """OpenVINO: one batch at a time that has all the cores, or several that share them."""
    targets: tuple[str, ...] = ()
    """TensorRT for RTX: GPU architectures to build for, such as sm89; none means the GPU that is here."""


class Calibration(Section):
    """Clips that set the INT8 ranges. Taken from the training split, spread over the classes."""

    clips: Positive = 512
    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    seed: Seed = 0
    max_drop: Annotated[float, Field(ge=0, le=100)] | None = None
    """Points of top-1 that int8 may lose on the calibration clips; as many blocks as it takes, the most sensitive first,
    are left in floating point. None: all blocks are int8."""
    stem: bool = False
    """Whether the first convolution is int8, too."""
    head: bool = False
    """Whether the classifier is int8, too."""


class Gate(Section):
    """What an engine must reach beside the PyTorch model, on validation clips, to be installed."""

    clips: Positive = 200
    """Validation clips used; all of them if there are fewer."""
    min_agreement: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Clips, in percent, on which the two name the same class first."""
    max_top1_drop: Annotated[float, Field(ge=0, le=100)] = 100.0
    """Points of top-1 accuracy that may be lost."""


class EngineRecipe(Section):
    """An engine: `engines/NAME.toml`."""

    engine: Engine = Engine()
    calibration: Calibration = Calibration()
    gate: Gate = Gate()


def with_views(clip: Clip, text: str) -> Clip:
    """The same clip with other views, given like 2x3.

    Raises:
        UsageError: it is not written like that, or out of range.
    """
    temporal_clips, _, spatial_crops = text.partition("x")
    if not (temporal_clips.isdecimal() and spatial_crops.isdecimal()):
        raise UsageError(f"--views {text}: write moments x squares, like 2x3")
    return validated(Clip, {**clip.model_dump(), "views": (int(temporal_clips), int(spatial_crops))})


def validated(model: type[R], settings: dict[str, Any]) -> R:
    """A section from plain values.

    Raises:
        UsageError: a value out of range.
    """
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        raise UsageError(explain(error, model)) from None


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first of pydantic's complaints as `section.key = value: what is allowed`."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        section: Any = model
        for part in problem["loc"][:-1]:
            section = _section(section, str(part))
        allowed = list(section.model_fields)
        last = str(problem["loc"][-1])
        hint = nearest(last, allowed) or f"; there are: {', '.join(allowed)}"
        return f"'{where}' is not a setting{hint}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", "must be")
    value = problem["input"]
    if isinstance(value, (dict, BaseModel)):
        return f"{where}: {message}"
    if isinstance(value, float) and not math.isfinite(value):
        message = "must be a finite number"
    return f"{where} = {value!r}: {message}"


def _section(model: Any, key: str) -> Any:
    annotation = model.model_fields[key].annotation
    options = [annotation, *getattr(annotation, "__args__", ())]
    return next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
