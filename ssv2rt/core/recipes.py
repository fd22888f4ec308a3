"""Recipes: every setting of a training run or an engine, with its type, range, default and meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ssv2rt.core.errors import UsageError
from ssv2rt.core.sections import Section, validated
from ssv2rt.core.train_settings import Positive, Seed, Train

Ratio = Annotated[float, Field(ge=0.1, le=10)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0.01, le=1)]
BatchSize = Annotated[int, Field(ge=1, le=4096)]
Sampling = Literal["segments", "uniform", "dense", "tsm", "ibm", "pyslowfast"]
Average = Literal["probabilities", "logits"]


class Synthetic(Section):
    """A synthetic set of time-reversed twins, written to the user's cache on first use."""

    clips: Annotated[int, Field(ge=30, le=10_000_000)] = 1000
    """Number of clips in all three splits together. It is even, because clips come in pairs of twins."""
    width: Annotated[int, Field(ge=32, le=4096)] = 427
    """Width of the videos in pixels."""
    height: Annotated[int, Field(ge=32, le=4096)] = 240
    """Height of the videos in pixels."""
    frames: tuple[Annotated[int, Field(ge=2, le=100_000)], Annotated[int, Field(ge=2, le=100_000)]] = (24, 60)
    """Smallest and largest number of frames of a video."""
    seed: Seed = 0
    """Seed of everything random in the set. The same settings and seed give the same clips."""

    @model_validator(mode="after")
    def _check(self) -> Synthetic:
        if self.clips % 2:
            raise ValueError(f"clips = {self.clips}: clips come in pairs of twins; take an even number")
        if self.frames[0] > self.frames[1]:
            raise ValueError(f"frames = {list(self.frames)}: the smaller comes first; swap the two")
        return self


class Data(Section):
    """Where the clips come from, and how they are read."""

    root: str = ""
    """Path of the data set: a folder in the layout of SSv2, a folder with a folder for each class, a table of paths and
    labels, or an annotation file. --data replaces it. Empty only with `synthetic`."""
    synthetic: Synthetic | None = None
    """Generate this synthetic set in the user's cache and use it as the data set. It excludes `root`."""
    test_videos: str = ""
    """With `synthetic`: folder for copies of the held-out test clips, made after training unless it exists. Empty: none."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Fraction of the clips of each class, and at least one, that is held out for validation where a data set has no
    validation split of its own: the clips whose names have the lowest hashes."""
    max_bad: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Largest fraction of clips that may be missing or undecodable. They are skipped; above this fraction the run stops."""
    decoder: Literal["auto", "pyav", "dali", "nvdec"] = "auto"
    """Video decoder. auto: NVDEC through DALI on a GPU (VP8, VP9, H.264), PyAV on a CPU. pyav: PyAV only. dali: DALI's CPU
    decoder (VP8, VP9). nvdec: NVDEC. PyAV decodes the codecs that the chosen decoder does not support."""
    verify_decoder: bool = True
    """Check DALI's frames against PyAV's: up to 4 clips of each kind of video (codec, pixel format, hidden frames) are decoded
    by both. If they differ, PyAV decodes all clips of this kind."""
    cpu_share: Annotated[float, Field(ge=0, le=1)] | None = None
    """Fraction of the clips that PyAV decodes on the CPU while DALI decodes the others, chosen by a hash of their names. Not
    set: training on a GPU with `decoder = "auto"` times both decoders on its first batch and balances them, except with
    `train.deterministic`; otherwise 0."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """Number of decoding threads of each process. 0: one per core, divided among the processes on this machine."""
    prefetch: Annotated[int, Field(ge=1, le=100)] = 3
    """Number of batches that are decoded ahead of the one in use."""
    readers: Annotated[int, Field(ge=1, le=1024)] = 16
    """Number of files that are read concurrently. More of them hide the latency of network storage."""
    read_ahead: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """Size limit in MiB of the files that are read ahead of decoding."""

    @model_validator(mode="after")
    def _check(self) -> Data:
        if self.root and self.synthetic:
            raise ValueError(f"root = '{self.root}' and synthetic exclude each other; remove one of them")
        return self


class ClipReading(Section):
    """How a clip is read from a video, apart from its size."""

    sampling: Sampling = "segments"
    """Which frames of a video make a clip. segments: one frame of each of `frames` equal segments: a random one in training,
    the middle one otherwise (TSN, Wang et al. 2016). uniform: as segments, but in training all frames are shifted by the same
    random distance. dense: frames that are `stride` apart. tsm, ibm and pyslowfast: in evaluation and scoring, the frames that
    TSM (also MMAction2's), IBM's I3D and TAM, and PySlowFast's and PyTorchVideo's Slow and SlowFast are evaluated on; in
    training, tsm is as segments, ibm as uniform, and pyslowfast takes a random frame of each segment."""
    stride: Annotated[float, Field(gt=0, le=1000)] = 2.0
    """Dense sampling: distance between two sampled frames, in frames."""
    timing: Literal["index", "time"] = "index"
    """Unit of frame positions. index: frame numbers. time: timestamps, for videos with variable or different frame rates;
    `stride` then counts frames at `rate`, and so do tsm, ibm and pyslowfast."""
    rate: Annotated[float, Field(gt=0, le=1000)] = 12.0
    """Frames per second that `stride`, tsm, ibm and pyslowfast refer to with `timing = "time"`. Otherwise it is not used.
    PySlowFast reads Something-Something V2 at 30."""
    center_crop: Fraction = 0.875
    """Side of the square crop in evaluation and scoring, as a fraction of the frame's shorter side. Published networks with
    three spatial crops take 1."""
    views: tuple[Annotated[int, Field(ge=1, le=100)], Annotated[int, Field(ge=1, le=100)]] = (1, 1)
    """Number of temporal clips and of spatial crops per clip in evaluation and scoring. See `average`."""
    average: Average = "probabilities"
    """What is averaged over the views of a clip. TSM and IBM average logits; MMAction2 and PySlowFast probabilities."""

    @model_validator(mode="after")
    def _check(self) -> ClipReading:
        if self.sampling == "tsm" and self.views[0] > 2:
            raise ValueError(
                f"views = {list(self.views)}: sampling = 'tsm' has 1 or 2 temporal clips; take as many, or 'segments'"
            )
        return self

    @property
    def in_words(self) -> str:
        """How clips are read, in one line."""
        sampling = f"{self.sampling} sampling"
        if self.sampling == "dense":
            sampling += f" with stride {self.stride:g}"
        if self.timing == "time":
            sampling += f" by time, at {self.rate:g} frames per second"
        views = f"views {self.views[0]}x{self.views[1]}" + (", mean logits" if self.average == "logits" else "")
        return f"{sampling}, center crop {self.center_crop:g}, {views}"


class Clip(ClipReading):
    """The clip that the network sees of a video. It is stored in every engine bundle."""

    frames: Annotated[int, Field(ge=1, le=1024)] = 16
    """Number of frames of a clip."""
    size: Annotated[int, Field(ge=16, le=1024)] = 224
    """Height and width of a clip in pixels."""

    def one_view(self) -> Clip:
        """The same clip with a single view, as in training."""
        return self.model_copy(update={"views": (1, 1)})


class Augment(Section):
    """Random augmentation of training clips. Every draw depends only on seed, epoch and clip."""

    crop_scale: tuple[Share, Share] = (0.4, 1.0)
    """Smallest and largest area of the random crop, as a fraction of the frame's area."""
    crop_ratio: tuple[Ratio, Ratio] = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio (width over height) of the random crop."""
    flip: Literal["label-aware", "never"] = "label-aware"
    """Horizontal flips. label-aware: half of the clips are flipped, and labels that say left or right are swapped."""
    color: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Strength of color jitter: brightness, contrast and saturation change by up to this fraction, hue by up to 45 degrees
    times this. 0: no color jitter."""
    grayscale: Probability = 0.0
    """Fraction of the clips that are converted to grayscale."""
    erase: Probability = 0.0
    """Fraction of the clips in which a rectangle is erased, the same in all frames (Random Erasing, Zhong et al. 2020)."""
    erase_area: tuple[Share, Share] = (0.02, 0.33)
    """Smallest and largest area of the erased rectangle, as a fraction of the clip's area."""
    rand_layers: Annotated[int, Field(ge=0, le=16)] = 0
    """RandAugment (Cubuk et al. 2020): number of random operations on each clip, the same in all its frames: contrast,
    brightness, color, sharpness, equalizing, solarizing, posterizing, rotation, shear and translation, or none. They come
    last, and are usual with `color = 0`. PySlowFast's rand-m7-n4, which leaves each out half of the time, is about 2 here."""
    rand_magnitude: Annotated[float, Field(ge=0, le=10)] = 9.0
    """RandAugment: strength of its operations. 10: 30 degrees, a shear of 0.3, a shift by 45%, factors of 0.1 or 1.9."""
    speed: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Strength of speed jitter. Dense sampling: `clip.stride` changes by up to this fraction, up or down. Other sampling: the
    clip comes from a part of the video that is shorter by up to this fraction. 0: no speed jitter."""

    @model_validator(mode="after")
    def _check(self) -> Augment:
        for name in ("crop_scale", "crop_ratio", "erase_area"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} = [{low}, {high}]: the smaller comes first; swap the two")
        usual = type(self).model_fields["rand_magnitude"].default
        if not self.rand_layers and self.rand_magnitude != usual:
            raise ValueError(
                f"rand_magnitude = {self.rand_magnitude:g} without operations: set rand_layers, too, such as 2"
            )
        return self

    @property
    def has_pixel_augment(self) -> bool:
        """Whether the loader's graph changes clips after cropping: by flips, color jitter, grayscale or erasing."""
        return self.flip != "never" or self.color > 0 or self.grayscale > 0 or self.erase > 0


class Model(Section):
    """The network. Its number of classes comes from the labels."""

    name: str = "resnet3d18"
    """Name of the network. `ssv2rt models` lists them."""
    width: Annotated[int, Field(ge=4, le=512)] = 64
    """Number of channels after the stem. Later stages have 2, 4 and 8 times as many."""
    temporal_strides: tuple[Literal[1, 2], Literal[1, 2], Literal[1, 2], Literal[1, 2]] = (1, 1, 1, 1)
    """ResNet3D: temporal strides of the four stages. All 1: no temporal downsampling. [1, 2, 2, 2]: torchvision's r3d_18."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Probability of dropout before the classifier."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """ResNets: probability of stochastic depth of the last residual block, which falls linearly towards the first (Huang et
    al. 2016). 0: none."""
    checkpointing: bool = False
    """ResNets: activation checkpointing, which recomputes activations in the backward pass to save memory."""
    init: str = ""
    """Initial weights: path of a .safetensors or .pth file, a run, or name of published weights such as r3d_18 or resnet50.
    Empty: random weights."""
    from_init: bool = False
    """Take the network and the clips (`[model]` and `[clip]`) that the weights of `init` were trained with, except settings
    given by --set. What was taken goes into the run's recipe, where this is false."""
    inflate: Literal["mean", "centre"] = "mean"
    """How 2D weights are inflated to 3D. mean: repeated over time and divided by the number of repeats. centre: in the middle
    of the kernel, zeros elsewhere (Carreira and Zisserman 2017)."""


class Recipe(Section):
    """A training run: `pipelines/NAME.toml`."""

    data: Data = Data()
    clip: Clip = Clip()
    augment: Augment = Augment()
    model: Model = Model()
    train: Train = Train()


class BatchProfile(Section):
    """Batch sizes of an engine."""

    min: BatchSize = 1
    """Smallest batch, in clips, that the engine accepts."""
    best: BatchSize = 8
    """Batch size, in clips, that the engine is optimized for."""
    max: BatchSize = 16
    """Largest batch, in clips, that the engine accepts."""

    @model_validator(mode="after")
    def _check(self) -> BatchProfile:
        if not self.min <= self.best <= self.max:
            raise ValueError(f"min = {self.min}, best = {self.best}, max = {self.max}: they must not decrease")
        return self


class Engine(Section):
    """Precision, batch sizes and backend options of an engine."""

    precision: Literal["fp32", "bf16", "fp16", "int8", "fp8"] = "fp16"
    """Precision of the network. int8 and fp8 are calibrated; layers that are not quantized are fp16, or as the backend chooses
    on a CPU."""
    batch: BatchProfile = BatchProfile()
    workspace_gib: Annotated[float, Field(gt=0)] = 4.0
    """TensorRT: workspace limit in GiB for tactics."""
    optimization_level: Annotated[int, Field(ge=0, le=5)] = 3
    """TensorRT: builder optimization level. Higher levels try more tactics and build longer."""
    version_compatible: bool = False
    """TensorRT: build an engine that later versions of TensorRT load, too. It may be slower. TensorRT for RTX has no such
    engines."""
    hardware_compatible: bool = False
    """TensorRT: build an engine for all GPUs since Ampere instead of one architecture. It may be slower. TensorRT for RTX
    takes its GPUs from `targets`."""
    cuda_graph: bool = True
    """TensorRT: capture the inference of a full batch as a CUDA graph and replay it."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """OpenVINO, and AOTInductor on a CPU: number of inference threads. 0: one per core."""
    hint: Literal["latency", "throughput"] = "latency"
    """OpenVINO: performance hint. latency: one batch at a time on all cores. throughput: several batches share the cores."""
    targets: tuple[str, ...] = ()
    """TensorRT for RTX: GPU architectures to build for, such as sm89. Empty: the GPU of this machine."""


class Calibration(Section):
    """Calibration of int8 and fp8 engines, on clips of the training split that are spread evenly over the classes, or on
    unlabeled videos."""

    clips: Positive = 512
    """Number of calibration clips. All training clips are used if there are fewer."""
    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    """How the dynamic range of an activation follows from its values: their extremes, least KL divergence, or a percentile."""
    seed: Seed = 0
    """Seed of the selection of clips for calibration and for the gate."""
    max_drop: Annotated[float, Field(ge=0, le=100)] | None = None
    """Largest drop of top-1 in percentage points on the calibration clips. The most sensitive blocks stay in floating point
    until the drop is no larger. Not set: all blocks are quantized."""
    stem: bool = False
    """Also quantize the first convolution."""
    head: bool = False
    """Also quantize the classifier."""


class Gate(Section):
    """What an engine must reach on validation clips, compared with the fp32 network, to be installed."""

    clips: Positive = 200
    """Number of validation clips. All of them are used if there are fewer, and the result says so."""
    min_agreement: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Smallest percentage of clips for which engine and fp32 network predict the same class. 0: not required."""
    max_top1_drop: Annotated[float, Field(ge=0, le=100)] = 100.0
    """Largest drop of top-1 accuracy in percentage points. 100: any. Without labeled clips it is not measured."""


class EngineRecipe(Section):
    """An engine: `engines/NAME.toml`."""

    engine: Engine = Engine()
    calibration: Calibration = Calibration()
    gate: Gate = Gate()
    clip: ClipReading = ClipReading()
    """For a network from an ONNX file. An engine of a run reads clips as the run does."""


def with_views(clip: Clip, text: str) -> Clip:
    """The same clip with other views, given as temporal clips x spatial crops, such as "2x3".

    Raises:
        UsageError: it is not written like that, out of range, or the sampling has no such views.
    """
    temporal_clips, _, spatial_crops = text.partition("x")
    if not (temporal_clips.isdecimal() and spatial_crops.isdecimal()):
        raise UsageError(f"--views {text}: write temporal clips x spatial crops, like 2x3")
    try:
        return validated(Clip, {**clip.model_dump(), "views": (int(temporal_clips), int(spatial_crops))})
    except UsageError as error:
        raise UsageError(f"--views {text}: {error}") from None
