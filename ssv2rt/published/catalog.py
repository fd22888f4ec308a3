"""Published weights by name: whose network they fit, how its clips are read, where the file is, and what was published of it.

Figures are those of the publishers, each with its source. A MAC is one multiply-accumulate; many publishers call it a FLOP.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ssv2rt.core.errors import UsageError, suggest
from ssv2rt.core.recipes import Clip, Model

ClassList = Literal["ssv2", "kinetics400"]

DATA_SETS: dict[ClassList, str] = {"ssv2": "Something-Something V2", "kinetics400": "Kinetics-400"}


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
    saved_as: str = ""
    """Name of the file on this machine, where its publisher has another one of the same name."""

    @property
    def file(self) -> str:
        """Name of the file on this machine."""
        return self.saved_as or self.published_as

    @property
    def published_as(self) -> str:
        """Name of the file at its publisher's."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class Published(WeightsFile):
    """Published weights of a video network, from which a run can be made."""

    model: Model
    clip: Clip
    """How clips are read, with the views of the published accuracy."""
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


def _torchvision(name: str, file: str, *, top1: float, top5: float, parameters: int, gmacs: float) -> Published:
    return Published(
        name=name,
        url=f"https://download.pytorch.org/models/{file}",
        sha256=file.removesuffix(".pth").rpartition("-")[2],
        license="BSD-3-Clause",
        publisher="torchvision",
        about="https://pytorch.org/vision/stable/models.html",
        model=Model(name=name),
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
        model=Model(name=f"resnet3d{depth}-pool"),
        clip=Clip(frames=32, size=256, sampling="ibm", center_crop=1.0, views=(2, 3), average="logits"),
        classes="ssv2",
        top1=top1,
        parameters=parameters,
        gmacs=gmacs,
        paper="https://arxiv.org/abs/2010.11757",
    )


_MODEL_ZOO = "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo"


def _pytorchvideo(
    network: str, file: str, frames: int, *, top1: float, top5: float, parameters: int, gmacs: float
) -> Published:
    return Published(
        name=f"{network}-ssv2",
        url=f"{_MODEL_ZOO}/ssv2/{file}.pyth",
        license="Apache-2.0",
        publisher="PyTorchVideo",
        about="https://github.com/facebookresearch/pytorchvideo/blob/main/docs/source/model_zoo.md",
        model=Model(name=network),
        clip=Clip(
            frames=frames, size=256, sampling="pyslowfast", timing="time", rate=30, center_crop=1.0, views=(1, 3)
        ),
        bgr=True,  # `rgb2bgr` of Ptvssv2 in slowfast/datasets/ptv_datasets.py of PySlowFast, which trained it
        classes="ssv2",
        top1=top1,
        top5=top5,
        parameters=parameters,
        gmacs=gmacs,
        paper="https://arxiv.org/abs/1812.03982",
    )


def _pytorchvideo_kinetics(of_ssv2: Published, stride: float, *, top1: float, top5: float, features: int) -> Published:
    """The same network with `features` before its classifier, trained on Kinetics-400."""
    file = of_ssv2.file
    return replace(
        of_ssv2,
        name=of_ssv2.name.replace("-ssv2", "-k400"),
        url=f"{_MODEL_ZOO}/kinetics/{file}",
        saved_as=file.replace(".pyth", "-kinetics400.pyth"),
        clip=of_ssv2.clip.model_copy(update={"sampling": "dense", "stride": stride, "views": (10, 3)}),
        bgr=False,  # Ptvkinetics there leaves RGB as it is
        classes="kinetics400",
        top1=top1,
        top5=top5,
        parameters=of_ssv2.parameters + (400 - 174) * (features + 1),
        note="PyTorchVideo spreads its 10 clips from the start to the end.",
    )


def _tsm(depth: int, frames: int, *, top1: float, parameters: int, gmacs: float) -> Published:
    file = f"TSM_somethingv2_RGB_resnet{depth}_shift8_blockres_avg_segment{frames}_e45.pth"
    return Published(
        name=f"tsm-r{depth}-{frames}f-ssv2",
        url=f"https://hanlab18.mit.edu/projects/tsm/models/{file}",
        license="MIT",
        publisher="MIT HAN Lab",
        about="https://github.com/mit-han-lab/temporal-shift-module",
        model=Model(name=f"tsm-r{depth}"),
        clip=Clip(frames=frames, size=256, sampling="tsm", center_crop=1.0, views=(2, 3), average="logits"),
        classes="ssv2",
        top1=top1,
        parameters=parameters,
        gmacs=gmacs,
        paper="https://arxiv.org/abs/1811.08383",
    )


def _mmaction(
    depth: int, frames: int, stamp: str, *, top1: float, top5: float, parameters: int, gmacs: float
) -> Published:
    config = f"tsm_imagenet-pretrained-r{depth}_8xb16-1x1x{frames}-50e_sthv2-rgb"
    return Published(
        name=f"tsm-r{depth}-{frames}f-ssv2-mmaction2",
        url=f"https://download.openmmlab.com/mmaction/v1.0/recognition/tsm/{config}/{config}_{stamp}.pth",
        sha256=stamp.rpartition("-")[2],
        license="Apache-2.0",
        publisher="MMAction2",
        about="https://github.com/open-mmlab/mmaction2/tree/main/configs/recognition/tsm",
        model=Model(name=f"tsm-r{depth}"),
        clip=Clip(frames=frames, size=256, sampling="tsm", center_crop=1.0, views=(2, 3)),
        classes="ssv2",
        top1=top1,
        top5=top5,
        parameters=parameters,
        gmacs=gmacs,
        paper="https://arxiv.org/abs/1811.08383",
    )


_TSM_R50, _TSM_R101 = 23_864_558, 42_856_686
"""Parameters with the 174 classes of Something-Something V2."""
_SLOW = _pytorchvideo("slow-r50", "SLOW_8x8_R50", 8, top1=60.04, top5=85.19, parameters=31_991_022, gmacs=54.518)
_SLOWFAST = _pytorchvideo(
    "slowfast-r50", "SLOWFAST_8x8_R50", 32, top1=61.68, top5=86.92, parameters=34_045_558, gmacs=65.708
)
_ENTRIES = (
    _ibm(50, top1=62.84, parameters=46_517_870, gmacs=335.31),
    _ibm(101, top1=64.29, parameters=85_564_014, gmacs=654.75),
    _SLOW,
    _SLOWFAST,
    _tsm(50, 8, top1=61.2, parameters=_TSM_R50, gmacs=42.707),
    _tsm(50, 16, top1=63.1, parameters=_TSM_R50, gmacs=85.413),
    _tsm(101, 8, top1=63.3, parameters=_TSM_R101, gmacs=81.496),
    _mmaction(50, 8, "20230317-be0fc26e", top1=62.72, top5=87.7, parameters=_TSM_R50, gmacs=42.707),
    _mmaction(50, 16, "20230317-ec6696ad", top1=64.16, top5=88.61, parameters=_TSM_R50, gmacs=85.413),
    _mmaction(101, 8, "20230320-efcc0d1b", top1=63.7, top5=88.28, parameters=_TSM_R101, gmacs=81.496),
    # 8 or 32 frames, evenly from the first to the last of 64 at 30 frames per second.
    _pytorchvideo_kinetics(_SLOW, 9, top1=74.58, top5=91.63, features=2048),
    _pytorchvideo_kinetics(_SLOWFAST, 63 / 31, top1=76.94, top5=92.69, features=2304),
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
