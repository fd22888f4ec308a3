"""Clips for engines without a labeled data set: of unlabeled videos, or generated.

Letters: N clips, T frames, S size.
"""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.core.progress import Progress
from ssv2rt.core.recipes import Clip, Data, EngineRecipe
from ssv2rt.dataset.classes import for_classes
from ssv2rt.dataset.listing import list_entries
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.dataset.scenes import PAIRS, draw_clip
from ssv2rt.engines.calibration import ChosenClips, file_key, read_clips, select_clips
from ssv2rt.engines.source import Source
from ssv2rt.pipelines.loader import ClipBatch, ClipLoader
from ssv2rt.pipelines.request_source import VideoRequest, clip_rng
from ssv2rt.pipelines.requests import ClipRequest
from ssv2rt.pipelines.samplers import in_batches
from ssv2rt.video.crops import CropBox

logger = logging.getLogger(__name__)

_FEWEST = 8
"""Fewest videos that calibration is done on, unless `calibration.clips` asks for fewer."""
_LARGEST_SCENE = 112
"""Width and height in pixels that scenes are drawn with at most. Larger clips repeat pixels, which is much faster."""


@dataclass(frozen=True)
class VideoClips:
    """Clips of unlabeled videos, one of each."""

    requests: tuple[ClipRequest, ...]
    clip: Clip
    data: Data
    clips_from: str

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def names(self) -> list[str]:
        return [file_key(request.path) for request in self.requests]

    def first(self, count: int) -> VideoClips:
        return replace(self, requests=self.requests[:count])

    def batches(self, what: str, batch: int = 8) -> Iterator[ClipBatch]:
        requests = in_batches(iter(self.requests), batch)
        return read_clips(requests, len(self), what, batch=batch, clip=self.clip, data=self.data)


@dataclass(frozen=True)
class GeneratedClips:
    """Clips of drawn scenes with moving objects and cameras. Half of them run backwards."""

    count: int
    clip: Clip
    seed: int = 0
    clips_from: str = "generated scenes"

    def __len__(self) -> int:
        return self.count

    @property
    def names(self) -> list[str]:
        return [f"generated {self.seed} {number}" for number in range(self.count)]

    def first(self, count: int) -> GeneratedClips:
        return replace(self, count=min(count, self.count))

    def batches(self, what: str, batch: int = 8) -> Iterator[ClipBatch]:
        with Progress(what, self.count) as progress:
            for start in range(0, self.count, batch):
                numbers = range(start, min(start + batch, self.count))
                clips = np.stack([self._draw(number) for number in numbers])
                yield ClipBatch(torch.from_numpy(clips), [self._request(number) for number in numbers])
                progress.add(len(numbers))

    def _draw(self, number: int) -> np.ndarray:
        """uint8 (T, S, S, 3)"""
        size, repeats = self.clip.size, -(-self.clip.size // _LARGEST_SCENE)
        drawn = -(-size // repeats)
        rng = clip_rng(self.seed, 0, f"generated {number}")
        scene = draw_clip(rng, number % len(PAIRS), max(2, self.clip.frames), drawn, drawn)[: self.clip.frames]
        scene = scene if number % 2 else scene[::-1]
        return scene.repeat(repeats, axis=1).repeat(repeats, axis=2)[:, :size, :size]

    def _request(self, number: int) -> ClipRequest:
        size, frames = self.clip.size, self.clip.frames
        whole = CropBox(0, 0, size, size)
        shown = np.arange(frames, dtype=np.int32)[None]
        return ClipRequest(f"generated {number}", Path("generated"), shown, (whole,), (size, size), frames)


def clips_without_data(source: Source, recipe: EngineRecipe) -> ChosenClips:
    """Generated clips for the comparison, and none for calibration."""
    return ChosenClips(None, GeneratedClips(recipe.gate.clips, source.clip, recipe.calibration.seed))


def clips_of_videos(
    source: Source, names: Sequence[str], recipe: EngineRecipe, manifest: Manifest | None
) -> ChosenClips:
    """Clips of unlabeled videos for calibration. Videos that cannot be read are named in a warning and left out.

    The engine is compared on validation clips of the data set if there is one, else on other videos of `names`, or on the
    same if there are too few.

    Args:
        source: the network, which says how clips are read.
        names: videos, folders of videos, glob patterns, or lists as @list.txt.
        recipe: how many clips there are to be.
        manifest: the data set, whose classes are matched by name; None if there is none.

    Raises:
        UsageError: one of `names` does not exist.
        UserError: too few videos can be read, or the network knows no class of the data.
    """
    paths = find_videos(names)
    settings, compared = recipe.calibration, 0 if manifest else recipe.gate.clips
    found = _readable(source, paths, settings.clips + compared, settings.seed)
    if len(found) < (least := min(_FEWEST, settings.clips)):
        raise UserError(
            f"{len(found)} of {len(paths)} videos for calibration can be read, and it takes at least {least}; add videos to "
            "--calibrate-on"
        )
    shown = ", ".join(names)
    calibration = VideoClips(tuple(found[: settings.clips]), source.clip, source.data, shown)
    if manifest:
        manifest = for_classes(manifest, source.labels, f"'{source.name}'")
        return ChosenClips(calibration, select_clips(source, manifest, "validation", recipe.gate.clips, settings.seed))
    others = found[settings.clips :]
    if len(others) >= min(_FEWEST, compared):
        return ChosenClips(
            calibration, replace(calibration, requests=tuple(others), clips_from=f"other videos of {shown}")
        )
    same = replace(calibration.first(compared), clips_from=f"{shown}, which it is calibrated on, too")
    return ChosenClips(calibration, same)


def find_videos(names: Sequence[str]) -> list[Path]:
    """The videos behind names: files, folders with their subfolders, glob patterns, and lists as @list.txt; each once.

    Raises:
        UsageError: a name does not exist, or there are no videos.
    """
    found: dict[Path, None] = {}
    for name in names:
        found |= dict.fromkeys(_videos_of(name))
    if not found:
        raise UsageError(f"--calibrate-on {', '.join(names)}: there are no videos; give a folder, files or @list.txt")
    return list(found)


def _videos_of(name: str) -> Iterator[Path]:
    path = Path(name)
    if path.is_dir():
        yield from _videos_below(path, set())
    elif path.is_file():
        yield path
    elif name.startswith("@") and Path(name[1:]).is_file():
        lines = Path(name[1:]).read_bytes().splitlines()
        yield from (Path(os.fsdecode(line)) for line in lines if line.strip())
    elif glob.has_magic(name) and (matching := sorted(glob.glob(name, recursive=True))):
        yield from (Path(match) for match in matching if os.path.isfile(match))
    else:
        raise UsageError(f"--calibrate-on {name}: there is no such file, folder or list; check the path")


def _videos_below(folder: Path, seen: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in seen:  # reached again through a link
        return
    seen.add(real)
    for entry in list_entries(folder):
        if entry.is_dir():
            yield from _videos_below(Path(entry.path), seen)
        else:
            yield Path(entry.path)


def _readable(source: Source, paths: Sequence[Path], count: int, seed: int) -> list[ClipRequest]:
    """The requests of the first `count` videos, in a random order, whose clips can be decoded."""
    order = clip_rng(seed, 0, "calibration").permutation(len(paths))
    clip = source.clip.one_view()
    wanted = in_batches((VideoRequest(str(paths[row]), paths[row], clip) for row in order), 8)
    loader = ClipLoader(clip=clip, batch=8, data=source.data, device=torch.device("cpu"))
    found: list[ClipRequest] = []
    with Progress("trying the videos", min(count, len(paths))) as progress:
        for made in loader.batches(wanted):
            for bad in made.bad:
                logger.warning(f"'{bad.request.path}' is left out: {bad.reason}")
            found += made.requests
            progress.add(len(made.requests))
            if len(found) >= count:
                break
    return found[:count]
