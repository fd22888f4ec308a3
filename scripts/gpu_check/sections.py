"""Which sections there are, of what parts, and the seconds that each takes on a GPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A piece of a section. If it kills its process, the parts after it are run by a new one."""

    name: str
    run: str
    """module:function, of this package."""
    seconds: float


@dataclass(frozen=True)
class Section:
    """Runs in a process of its own."""

    name: str
    title: str
    parts: tuple[Part, ...]
    hidden: bool = False
    """Only run when it is named."""
    videos: bool = False
    """Whether it works on what the section `videos` makes."""

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)


def _section(
    name: str, title: str, *parts: tuple[str, str, float], hidden: bool = False, videos: bool = False
) -> Section:
    return Section(name, title, tuple(Part(*part) for part in parts), hidden, videos)


SECTIONS = (
    _section(
        "injected",
        "Faults made on purpose, to see that the rest goes on",
        ("before", "injected:fine", 0.3),
        ("error", "injected:error", 0.3),
        ("missing", "injected:missing", 0.3),
        ("broken", "injected:broken", 0.3),
        ("crash", "injected:crash", 0.3),
        ("hang", "injected:hang", 0.3),
        ("after", "injected:fine", 0.3),
        hidden=True,
    ),
    _section(
        "machine",
        "What is here, and the most that it gives",
        ("software", "machine:software", 3),
        ("gpu", "machine:gpu", 8),
        ("nvdec", "machine:nvdec", 2),
        ("misfits", "machine:misfits", 3),
        ("matrix products", "machine:products", 10),
        ("memory bandwidth", "machine:bandwidth", 5),
    ),
    _section("videos", "Videos to work on", ("coded as SSv2's are", "videos:prepare", 12)),
    _section(
        "decode",
        "DALI's decoder beside PyAV",
        ("frames", "decode:frames", 20),
        ("colours and turns", "decode:colours", 8),
        ("mixed batch", "decode:mixed_batch", 8),
        ("coded sizes", "decode:coded_sizes", 6),
        ("speed", "decode_speed:speed", 30),
        ("changing sizes", "decode_speed:sizes", 14),
        ("memory", "decode_speed:memory", 16),
        ("odd formats", "decode:odd_formats", 10),
        videos=True,
    ),
    _section(
        "pipeline",
        "From files to clips on the device",
        ("no copy", "pipeline:no_copy", 8),
        ("augmentations", "pipeline:augmentations", 6),
        ("speed", "pipeline:speed", 18),
        videos=True,
    ),
    _section(
        "model",
        "Layouts, precisions and batch sizes",
        ("resnet3d18 at 112", "model:resnet18_small", 14),
        ("resnet3d50 at 112", "model:resnet50_small", 14),
        ("resnet3d18 at 224", "model:resnet18", 18),
        ("resnet3d50 at 224", "model:resnet50", 20),
        ("resnet3d50-pool at 224", "model:resnet50_pool", 14),
        ("normalising", "model:normalising", 3),
        ("compiled", "model:compiled", 30),
    ),
    _section(
        "training",
        "Fed by the loader, beside a batch that lies ready",
        ("decoders at 112", "training:small", 16),
        ("decoders at 224", "training:large", 20),
        ("what waits", "training:waits", 6),
        ("batch size", "training:batch_size", 12),
        ("ssv2rt benchmark train", "training:benchmark", 12),
        videos=True,
    ),
    _section(
        "engines",
        "Engines beside PyTorch",
        ("graphs", "engines:graphs", 14),
        ("PyTorch", "engines:pytorch", 8),
        ("tensorrt", "engines:tensorrt", 34),
        ("tensorrt-rtx", "engines:tensorrt_rtx", 14),
        ("openvino", "engines:openvino", 4),
        ("aotinductor", "engines:aotinductor", 40),
        ("torch.compile", "engines:compiled", 16),
        videos=True,
    ),
    _section(
        "scoring",
        "Videos to rows, good and bad",
        ("rows", "scoring:rows", 14),
        ("speed", "scoring:speed", 14),
        videos=True,
    ),
    _section("tests", "Tests that need a GPU", ("pytest -m gpu", "tests:pytest", 30)),
)


def chosen(names: str) -> list[Section]:
    """The sections of a list such as 'decode,model', in the order of `SECTIONS`; all if it is empty.

    Raises:
        ValueError: there is no such section.
    """
    known = {section.name: section for section in SECTIONS}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise ValueError(
                f"no section '{name}'; there are: {', '.join(n for n, s in known.items() if not s.hidden)}"
            )
    taken = [s for s in SECTIONS if (s.name in wanted if wanted else not s.hidden)]
    return [s for s in SECTIONS if s in taken or (s.name == "videos" and any(other.videos for other in taken))]
