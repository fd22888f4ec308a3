"""Makes a synthetic data set in SSv2's layout. It consists of pairs of clips ("twins"): one shows a scene forward, the other
backward with the opposite label. So a model must use the order of the frames to tell the two classes apart.

By default every frame is a VP9 key frame. The backward clip then has the packets of the forward clip in reverse order, and
both have *exactly* the same decoded frames. With `key_frames="first"` clips are coded like SSv2's: one key frame followed by
inter frames, and in clips of 14 frames or more hidden pictures (see `video.pictures`). The frames of two twins then differ by
compression noise.
"""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np

from ssv2rt.core.atomic_files import atomic_file, remove_all_partial_files, remove_partial_files, write_json, write_text
from ssv2rt.core.child_processes import follow_parent
from ssv2rt.core.cores import cores
from ssv2rt.core.errors import UserError, os_errors_as_user_errors
from ssv2rt.core.locks import exclusive
from ssv2rt.core.recipes import Synthetic
from ssv2rt.dataset.listing import SPLITS
from ssv2rt.dataset.scenes import PAIRS, draw_clip

logger = logging.getLogger(__name__)


LABELS = tuple(label for pair in PAIRS for label in pair)
RATE = 12
FORMAT = {"all": 1, "first": 2}
"""Version of the generator. Incremented whenever the same spec gives different clips."""
SPLIT_FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}

KeyFrames = Literal["all", "first"]
_CODING: dict[KeyFrames, dict[str, str]] = {
    "all": {"lag-in-frames": "0", "auto-alt-ref": "0", "crf": "36", "b": "0", "g": "1"},
    # libvpx uses hidden pictures only with a bit rate and look-ahead.
    "first": {"lag-in-frames": "25", "auto-alt-ref": "1", "g": "9999"},
}
_BITS_PER_PIXEL = 0.2
"""Bits per pixel and frame with `key_frames="first"`, about as many as SSv2 has."""


@dataclass(frozen=True)
class Twins:
    """Two clips that are time reversals of each other. `ids` and `labels` (class numbers) are (forward, backward)."""

    number: int
    split: str
    ids: tuple[str, str]
    labels: tuple[int, int]


def plan(spec: Synthetic) -> list[Twins]:
    """All twins of the set. Both twins are in the same split, classes are balanced, and ids are random."""
    pairs = spec.clips // 2
    ids = np.random.Generator(np.random.Philox(key=spec.seed)).permutation(2 * pairs) + 1
    splits: list[str] = []
    for split in ("test", "validation"):
        splits += [split] * max(1, round(SPLIT_FRACTIONS[split] * pairs / len(PAIRS))) * len(PAIRS)
    splits += ["train"] * (pairs - len(splits))
    result = []
    for number, split in enumerate(splits):
        kind = number % len(PAIRS)
        forward, backward = (str(ids[2 * number]), str(ids[2 * number + 1]))
        result.append(Twins(number, split, (forward, backward), (2 * kind, 2 * kind + 1)))
    return result


def synthesize(
    folder: Path,
    spec: Synthetic,
    *,
    key_frames: KeyFrames = "all",
    workers: int = 0,
    wait: bool = False,
    progress: Callable[[int], None] = lambda clips: None,
) -> None:
    """Writes the set to `folder`: labels/train/validation/test JSON, test-answers.csv, twins.json, videos/ID.webm.

    Existing clips are kept, so repeating an interrupted call resumes it. The same spec gives the same files, byte for byte,
    with any number of workers.

    Args:
        folder: a new or empty folder, or that of an interrupted call with the same spec.
        spec: number, size and length of the clips, and the seed.
        key_frames: 'all' for exact twins, 'first' for clips coded like SSv2's.
        workers: number of processes; 0 for one per core.
        wait: if another process is writing to `folder`, wait for it, instead of raising an error.
        progress: called with the number of clips just written.

    Raises:
        UserError: `folder` contains something else, or cannot be written; or another process is writing to it.
    """
    settings: dict[str, object] = {
        "synthetic": spec.model_dump(mode="json"),
        "key_frames": key_frames,
        "format": FORMAT[key_frames],
    }
    fix = "mend that, or choose another folder"
    with exclusive(folder, "writing", wait=wait), os_errors_as_user_errors(f"cannot write to '{folder}'", fix):
        _claim_folder(folder, settings)
        twins = plan(spec)
        missing = [t for t in twins if not all(_clip_path(folder, clip).exists() for clip in t.ids)]
        progress(2 * (len(twins) - len(missing)))
        for written in _write_all(folder, spec, key_frames, missing, workers or cores()):
            progress(written)
        if missing or not is_complete(folder):
            _write_annotations(folder, twins)


def is_complete(folder: Path) -> bool:
    """Whether `synthesize` has finished in `folder`. The annotations are written last."""
    return (folder / "train.json").is_file()


def _claim_folder(folder: Path, settings: dict[str, object]) -> None:
    settings_file = folder / "synthetic.json"
    if settings_file.is_file():
        if _read_settings(settings_file) != settings:
            raise UserError(f"'{folder}' holds a synthetic set made with other settings; choose another folder")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial_files(settings_file, older_than=-1)
        if any(folder.iterdir()):
            raise UserError(f"'{folder}' is not empty; choose a new folder")
        write_json(settings_file, settings)
    (folder / "videos").mkdir(exist_ok=True)
    remove_all_partial_files(folder, folder / "videos")


def _read_settings(settings_file: Path) -> object:
    try:
        return json.loads(settings_file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None


def _write_all(folder: Path, spec: Synthetic, key_frames: KeyFrames, twins: list[Twins], workers: int) -> Iterator[int]:
    if workers == 1 or len(twins) < 8:
        for pair in twins:
            yield _write_twins(folder, spec, key_frames, [pair])
        return
    jobs = [[pair] for pair in twins]  # small jobs, so that an interrupted call ends soon
    # Spawn, because forking a process with threads may deadlock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=follow_parent) as pool:
        futures = [pool.submit(_write_twins, folder, spec, key_frames, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _write_twins(folder: Path, spec: Synthetic, key_frames: KeyFrames, twins: list[Twins]) -> int:
    for pair in twins:
        rng = np.random.Generator(np.random.Philox(key=spec.seed, counter=pair.number << 64))
        frames = int(rng.integers(spec.frames[0], spec.frames[1] + 1))
        clip = draw_clip(rng, pair.labels[0] // 2, frames, spec.width, spec.height)
        packets = encode_vp9(clip, key_frames)
        backwards = packets[::-1] if key_frames == "all" else encode_vp9(clip[::-1], key_frames)
        for clip_id, coded in zip(pair.ids, (packets, backwards), strict=True):
            with atomic_file(_clip_path(folder, clip_id)) as path:
                path.write_bytes(mux_webm(coded, spec.width, spec.height, key_frames))
    return 2 * len(twins)


def encode_vp9(clip: np.ndarray, key_frames: KeyFrames) -> list[bytes]:
    """Encodes a uint8 RGB clip (T, H, W, 3) to VP9 packets, one per frame."""
    encoder = av.CodecContext.create("libvpx-vp9", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.height, encoder.width = clip.shape[1:3]
    encoder.pix_fmt = "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, RATE), Fraction(RATE)
    encoder.thread_count = 1  # the same bytes on every machine
    encoder.options = {"deadline": "realtime", "cpu-used": "8", **_CODING[key_frames]}
    if key_frames == "first":
        encoder.bit_rate = round(_BITS_PER_PIXEL * RATE * encoder.width * encoder.height)
    packets: list[bytes] = []
    for picture in clip:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        packets += [bytes(packet) for packet in encoder.encode(frame)]
    packets += [bytes(packet) for packet in encoder.encode(None)]
    assert len(packets) == len(clip)
    return packets


def mux_webm(packets: list[bytes], width: int, height: int, key_frames: KeyFrames) -> bytes:
    """A WebM file of VP9 packets with one frame each, at `RATE` frames per second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libvpx-vp9", rate=RATE)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, RATE)
        container.start_encoding()
        for number, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream = stream
            packet.time_base = Fraction(1, RATE)
            packet.pts = packet.dts = number
            packet.duration = 1
            packet.is_keyframe = key_frames == "all" or number == 0
            container.mux(packet)
    return buffer.getvalue()


def _write_annotations(folder: Path, twins: list[Twins]) -> None:
    rows: dict[str, list[tuple[str, int]]] = {split: [] for split in SPLITS}
    for pair in twins:
        rows[pair.split] += zip(pair.ids, pair.labels, strict=True)
    for entries in rows.values():
        entries.sort(key=lambda entry: int(entry[0]))
    write_json(folder / "labels.json", {name: str(number) for number, name in enumerate(LABELS)})
    write_json(folder / "twins.json", {a: b for pair in twins for a, b in (pair.ids, pair.ids[::-1])})
    write_json(folder / "test.json", [{"id": clip} for clip, _ in rows["test"]])
    write_text(folder / "test-answers.csv", "".join(f"{clip};{LABELS[label]}\n" for clip, label in rows["test"]))
    for split in ("validation", "train"):
        write_json(folder / f"{split}.json", [_entry(clip, LABELS[label]) for clip, label in rows[split]])


def _entry(clip: str, name: str) -> dict[str, object]:
    """An annotation in SSv2's format, with the template's placeholders filled in."""
    count = name.lower().count("something")
    things = ["a thing", "another thing"][:count]
    template = name.replace("Something", "[Something]").replace("something", "[something]")
    text = name
    for thing in things:
        text = text.replace("something", thing, 1)
    return {"id": clip, "label": text.lower(), "template": template, "placeholders": things}


def _clip_path(folder: Path, clip: str) -> Path:
    return folder / "videos" / f"{clip}.webm"
