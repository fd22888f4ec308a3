"""Published weights by name: whose network they fit, how its clips are read, where the file is, and what was published of it.

Figures are those of the publishers, each with its source. A MAC is one multiply-accumulate; many publishers call it a FLOP.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ssv2rt.core.errors import UsageError, suggest
from ssv2rt.core.recipes import Clip, Model

Color = tuple[float, float, float]
"""Of red, green and blue, from 0 to 1."""
ClassList = Literal["ssv2", "kinetics400"]

DATA_SETS: dict[ClassList, str] = {"ssv2": "Something-Something V2", "kinetics400": "Kinetics-400"}
_IMAGENET: tuple[Color, Color] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_KINETICS: tuple[Color, Color] = ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A file of weights that its publisher offers for download."""

    name: str
    """What it is called in commands."""
    url: str
    sha256: str = ""
    """SHA-256 of the file in hexadecimal, or as many digits of its beginning as are published."""
    license: str
    """Of the publisher's code and weights, as an SPDX identifier."""
    publisher: str
    about: str
    """The page that describes it."""

    @property
    def file(self) -> str:
        """Name of the file at the publisher's."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class Published(WeightsFile):
    """Published weights of a video network, from which a run can be made."""

    model: Model
    clip: Clip
    """How clips are read, with the views of the published accuracy."""
    mean: Color
    std: Color
    bgr: bool = False
    """The network was trained with blue, green, red as its input channels, in place of red, green, blue."""
    classes: ClassList
    top1: float
    """In percent, on the validation split of the data set."""
    top5: float | None = None
    parameters: int
    gmacs: float
    """10^9 MACs of one view, at the size of `clip`."""
    note: str = ""
    """What differs from the publisher's evaluation, as a sentence."""
    paper: str

    @property
    def data_set(self) -> str:
        return DATA_SETS[self.classes]

    @property
    def input_text(self) -> str:
        """Frames, size and views, such as 32x256 px, 2x3 views."""
        clip = self.clip
        return f"{clip.frames}x{clip.size} px, {clip.views[0]}x{clip.views[1]} views"

    @property
    def accuracy_text(self) -> str:
        return f"{self.top1:.2f}" + (f" / {self.top5:.2f}" if self.top5 is not None else "")


def _network(name: str) -> Model:
    """A network's settings. Dropout is the publishers', and does not matter for inference."""
    return Model(name=name)


def _torchvision(name: str, file: str, *, top1: float, top5: float, parameters: int, gmacs: float) -> Published:
    return Published(
        name=name,
        url=f"https://download.pytorch.org/models/{file}",
        sha256=file.removesuffix(".pth").rpartition("-")[2],
        license="BSD-3-Clause",
        publisher="torchvision",
        about="https://pytorch.org/vision/stable/models.html",
        model=_network(name),
        clip=Clip(
            frames=16,
            size=112,
            sampling="dense",
            stride=1,
            timing="time",
            rate=15,
            center_crop=0.875,
            views=(5, 1),
        ),
        mean=_KINETICS[0],
        std=_KINETICS[1],
        classes="kinetics400",
        top1=top1,
        top5=top5,
        parameters=parameters,
        gmacs=gmacs,
        note="torchvision resizes frames to 171x128 before it crops, and spreads its 5 clips from the start to the end.",
        paper="https://arxiv.org/abs/1711.11248",
    )


def _ibm(depth: int, *, top1: float, parameters: int, gmacs: float) -> Published:
    return Published(
        name=f"i3d-r{depth}-ssv2",
        url=f"https://github.com/IBM/action-recognition-pytorch/releases/download/weights-v0.1/SSV2-I3D-ResNet-{depth}-f32.pth.tar",
        license="Apache-2.0",
        publisher="IBM",
        about="https://github.com/IBM/action-recognition-pytorch",
        model=_network(f"resnet3d{depth}-pool"),
        clip=Clip(frames=32, size=256, sampling="ibm", center_crop=1.0, views=(2, 3), average="logits"),
        mean=_IMAGENET[0],
        std=_IMAGENET[1],
        classes="ssv2",
        top1=top1,
        parameters=parameters,
        gmacs=gmacs,
        paper="https://arxiv.org/abs/2010.11757",
    )


_ENTRIES = (
    _ibm(50, top1=62.84, parameters=46_517_870, gmacs=335.31),
    _torchvision("r3d_18", "r3d_18-b3b3357e.pth", top1=63.2, top5=83.479, parameters=33_371_472, gmacs=40.697),
    _torchvision("mc3_18", "mc3_18-a90a0ba3.pth", top1=63.96, top5=84.13, parameters=11_695_440, gmacs=43.343),
    _torchvision(
        "r2plus1d_18", "r2plus1d_18-91a641e6.pth", top1=67.463, top5=86.175, parameters=31_505_325, gmacs=40.519
    ),
)
PUBLISHED = {entry.name: entry for entry in _ENTRIES}
"""Video networks, from which runs can be made and training can start."""

IMAGENET = {
    name: WeightsFile(
        name=name,
        url=f"https://download.pytorch.org/models/{name}-{digest}.pth",
        sha256=digest,
        license="BSD-3-Clause",
        publisher="torchvision",
        about="https://pytorch.org/vision/stable/models.html",
    )
    for name, digest in (("resnet18", "f37072fd"), ("resnet50", "0676ba61"), ("resnet101", "63fe2227"))
}
"""2D networks for images, from which training can start after inflation."""

WEIGHTS: dict[str, WeightsFile] = {**PUBLISHED, **IMAGENET}


def published(name: str) -> Published:
    """The entry of a video network.

    Raises:
        UsageError: there is none of this name.
    """
    if name in IMAGENET:
        raise UsageError(f"'{name}' is a network for images; start from it with `ssv2rt train --init {name}`")
    if name not in PUBLISHED:
        raise UsageError(f"no published network '{name}'{suggest(name, list(PUBLISHED))}")
    return PUBLISHED[name]


def class_names(classes: ClassList) -> tuple[str, ...]:
    """The names of a data set's classes in the order of the publishers' networks, which is that of sorted names."""
    file = Path(__file__).parent / "labels" / f"{classes}.txt"
    return tuple(file.read_text(encoding="utf-8").splitlines())
