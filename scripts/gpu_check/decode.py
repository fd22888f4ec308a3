"""Whether DALI shows what PyAV shows: frames, colours, turns, several sizes in a batch, formats that are seldom met.

On a GPU that is NVDEC (`mixed`); on a CPU, DALI's own decoder for VP8, VP9 and MJPEG, by the same code.
Letters: N videos, T frames, H height, W width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, types
from nvidia.dali.pipeline import pipeline_def

from gpu_check.measure import device, without_nvdec
from gpu_check.record import Missing, Record, steps
from gpu_check.videos import colour_film, film
from ssv2rt.core.recipes import Clip, Data
from ssv2rt.pipelines.loaded_clip import Decoder
from ssv2rt.pipelines.loader import CODECS, ClipLoader, choose_decoder, decodable
from ssv2rt.pipelines.nvdec_limits import EVERYWHERE, limits_of
from ssv2rt.pipelines.request_source import evaluation_request
from ssv2rt.pipelines.requests import ClipRequest
from ssv2rt.video.crops import CropBox
from ssv2rt.video.decode import decode_clips
from ssv2rt.video.probe import VideoInfo, probe

LIMIT = 3.0
"""Mean difference, of 255, that roundings and the interpolation of colours explain in pictures without sharp edges."""


def frames(record: Record) -> None:
    """Every codec by DALI's decoder alone, unscaled: are the pictures right, and are they those that were asked for?"""
    if device().type == "cuda" and (reason := without_nvdec()):
        raise Missing("NVDEC", reason)
    films = [
        ("vp9", 427, 240, 40),  # an odd width, as SSv2 has it
        ("vp9", 241, 135, 20),
        ("vp9", 320, 240, 3),
        ("vp9", 320, 240, 1),
        ("h264", 428, 240, 40),
        ("hevc", 428, 240, 40),
        ("av1", 428, 240, 40),
        ("vp8", 427, 240, 20),
        ("mpeg4", 428, 240, 20),
        ("mjpeg", 428, 240, 10),
    ]
    limits = limits_of(device()) if decoder() == "mixed" else EVERYWHERE
    folder = _folder(record, "frames")
    for number, (coding, width, height, count) in enumerate(steps(record, films, each=1.0, what="frames of")):
        try:
            path = film(folder / f"{number}", coding, width=width, height=height, frames=count)
        except Missing as error:
            record.unavailable_reason(error.what, error.why)
            continue
        row: dict[str, Any] = {"codec": coding, "size": f"{width} x {height}", "frames": count}
        if coding not in CODECS[decoder()]:
            record.row("frames by DALI", **row, decoder="none on a CPU")
            continue
        found = probe(path)
        asked = np.unique([0, count // 3, count // 3 + 1, count - 1]).clip(0, count - 1).astype(np.int32)
        asked = np.sort(np.append(asked, asked[len(asked) // 2])).astype(np.int32)  # one of them twice
        try:
            seen = by_dali(path, asked)
        except RuntimeError as error:
            record.row("frames by DALI", **row, decoder=decoder(), error=_reason(error))
            if decodable(found, decoder(), limits):  # the loader would try, and have to begin anew
                record.check(f"DALI decodes {coding}, {width} x {height}, {count} frames", False, _reason(error))
            continue
        places, mean, most = _beside_pyav(path, found, seen, asked)
        right_ones = sum(a == b for a, b in zip(places, asked, strict=True))
        record.row(
            "frames by DALI",
            **row,
            decoder=decoder(),
            mean_difference=mean,
            largest_difference=most,
            in_place=f"{right_ones} of {len(asked)}",
            loader_takes_it="yes" if decodable(found, decoder(), limits) else f"no, it is '{found.codec}'",
        )
        name = f"{coding}, {width} x {height}, {count} frames"
        record.check(f"frames are those asked for: {name}", right_ones == len(asked), f"{places} for {asked.tolist()}")
        record.check(f"pictures as by PyAV: {name}", bool(mean < LIMIT), f"mean difference {mean:.2f}")


def colours(record: Record) -> None:
    """Colour matrices, full range and turns, as the loader gives them."""
    folder = _folder(record, "colours")
    cases: list[tuple[str, str, dict[str, Any]]] = [
        (f"{coding}, {name}", coding, how)
        for coding in ("vp9", "h264")
        for name, how in (
            ("BT.601", {"matrix": 5}),
            ("BT.601, full range", {"matrix": 5, "full_range": True}),
            ("BT.709", {"matrix": 1}),
            ("BT.709, full range", {"matrix": 1, "full_range": True}),
        )
    ]
    cases += [(f"h264, turned by {degrees}", "h264", {"degrees": degrees}) for degrees in (90, 180, 270)]
    for number, (name, coding, how) in enumerate(steps(record, cases, each=0.5, what="colours of")):
        try:
            path = colour_film(folder / f"{number}", coding, width=256, height=192, **how)
        except Missing as error:
            record.unavailable_reason(error.what, error.why)
            continue
        _through_loader(record, "colours and turns, through the loader", name, [path])


def mixed_batch(record: Record) -> None:
    """Several codecs, sizes and lengths in one batch, three times."""
    folder, paths = _folder(record, "mixed"), []
    for number, (coding, width, height, count) in enumerate(
        [
            ("vp9", 427, 240, 40),
            ("vp9", 240, 427, 7),
            ("h264", 320, 180, 30),
            ("vp9", 320, 240, 2),
            ("hevc", 256, 256, 25),
            ("vp9", 427, 240, 16),
        ]
    ):
        try:
            paths.append(film(folder / f"{number}", coding, width=width, height=height, frames=count))
        except Missing as error:
            record.unavailable_reason(error.what, error.why)
    _through_loader(record, "one batch of everything", "mixed batch", paths, times=3)
    if device().type == "cuda":
        record.doing("DALI's CPU decoder in front of a GPU")
        _through_loader(record, "one batch of everything", "data.decoder = 'dali'", paths, how="dali")


def coded_sizes(record: Record) -> None:
    """Videos that are coded in the same size and shown in another, one after the other.

    DALI keeps NVDEC's decoders by the size that is shown and looks for them by the size that is coded. So a video that is
    cut when it is shown, as 427 x 240 is, never gets a kept one; and it may get one that was made for another video.
    """
    folder = _folder(record, "coded")
    shapes = [(448, 256), (442, 250), (448, 250), (442, 256), (448, 256), (427, 240), (432, 240), (427, 240)]
    shapes = shapes[:3] if record.quick else shapes
    cases = [(coding, number) for coding in ("vp9", "h264") for number in range(len(shapes))]
    for coding, number in steps(record, cases, each=0.3, what="coded sizes"):
        width, height = shapes[number][0] & ~(coding == "h264"), shapes[number][1]
        name = f"{coding}, {width} x {height}, number {number}"
        try:
            path = film(folder / f"{coding}-{number}", coding, width=width, height=height, frames=6)
            asked = np.array([0, 2, 5], np.int32)
            if coding not in CODECS[decoder()]:
                continue
            places, mean, most = _beside_pyav(path, probe(path), by_dali(path, asked), asked)
        except Missing as error:
            record.unavailable_reason(error.what, error.why)
            continue
        except RuntimeError as error:
            record.check(f"DALI decodes {name}", False, _reason(error))
            continue
        record.row("coded sizes, in this order", video=name, mean_difference=mean, largest_difference=most)
        fine = bool(mean < LIMIT) and places == asked.tolist()
        record.check(f"as by PyAV: {name}", fine, f"mean difference {mean:.2f}, frames {places}")


def odd_formats(record: Record) -> None:
    """What NVDEC may not have: the loader gives the same pictures all the same, and lives on."""
    folder = _folder(record, "odd")
    cases: list[tuple[str, Callable[[], Path]]] = [
        ("vp9, 64 x 48", lambda: film(folder / "small", "vp9", width=64, height=48, frames=20)),
        ("h264, 32 x 32", lambda: film(folder / "tiny", "h264", width=32, height=32, frames=20)),
        ("h264, 10 bit", lambda: film(folder / "h264-10", "h264, 10 bit", width=320, height=240, frames=20)),
        ("hevc, 10 bit", lambda: film(folder / "hevc-10", "hevc, 10 bit", width=320, height=240, frames=20)),
        ("vp9, 10 bit", lambda: _kept("vp9_10bit.webm")),
        ("vp9, 4:4:4", lambda: film(folder / "vp9-444", "vp9, 4:4:4", width=320, height=240, frames=20)),
    ]
    for name, make in steps(record, cases, each=1.0, what="formats"):
        record.doing(name)
        try:
            path = make()
        except Missing as error:
            record.unavailable_reason(error.what, error.why)
            continue
        _through_loader(record, "odd formats, through the loader", name, [path])


def decoder() -> Decoder:
    """What DALI decodes with here."""
    return "mixed" if device().type == "cuda" else "cpu"


def by_dali(path: Path, asked: np.ndarray) -> np.ndarray:
    """Frames of a video by DALI's decoder alone: uint8 (T, H, W, 3).

    Raises:
        RuntimeError: DALI refuses.
    """
    pipe = frames_only(decoder(), batch_size=1, num_threads=2, device_id=0 if decoder() == "mixed" else None)
    pipe.build()
    pipe.feed_input("encoded", [np.fromfile(path, np.uint8)])
    pipe.feed_input("index", [asked])
    (seen,) = pipe.run()
    return np.array((seen.as_cpu() if decoder() == "mixed" else seen).at(0))


@pipeline_def
def frames_only(how: Decoder) -> Any:
    """Decodes, and does nothing else."""
    encoded = fn.external_source(name="encoded", ndim=1, dtype=types.DALIDataType.UINT8)
    index = fn.external_source(name="index", ndim=1, dtype=types.DALIDataType.INT32)
    return fn.decoders.video(encoded, frames=index, device=how)


def _beside_pyav(
    path: Path, info: VideoInfo, seen: np.ndarray, asked: np.ndarray
) -> tuple[list[int], np.floating[Any], np.floating[Any]]:
    """Compares frames by DALI with PyAV's, in the squares at the left and at the right.

    Args:
        path: the video.
        info: of it.
        seen: uint8 (T, H, W, 3), by DALI.
        asked: int32 (T,): which frames they should be.

    Returns:
        The frame of PyAV's that each is nearest to; mean and largest difference from those that were asked for.
    """
    true = _squares(path, info, np.arange(info.frames))
    side = true.shape[2]
    left, right = seen[:, :side, :side], seen[:, :side, info.width - side & ~1 :][:, :, :side]
    ours = np.stack([left, right]).astype(np.float32)
    wanted = true[:, asked].astype(np.float32)
    places = [int(np.abs(true[0] - picture).mean((1, 2, 3)).argmin()) for picture in ours[0]]
    return places, np.abs(ours - wanted).mean(), np.abs(ours - wanted).max()


def _squares(path: Path, info: VideoInfo, asked: np.ndarray) -> np.ndarray:
    """By PyAV, unscaled: the squares at the left and at the right, uint8 (2, T, side, side, 3)."""
    side = min(info.width, info.height) & ~1
    windows = (CropBox(0, 0, side, side), CropBox(info.width - side & ~1, 0, side, side))
    request = ClipRequest("x", path, asked[None].astype(np.int32), windows, (info.width, info.height), info.frames)
    return decode_clips(path, request, size=side)


def _through_loader(
    record: Record, table: str, name: str, paths: Sequence[Path], *, times: int = 1, how: str = ""
) -> None:
    """A batch of the loader beside what PyAV makes of each video.

    Args:
        record: takes a row and a check for each video.
        table: of the rows.
        name: of the case.
        paths: of the batch.
        times: how often it is made.
        how: `data.decoder`; by default what users have on a GPU, and on a CPU DALI's decoder.
    """
    clip = Clip(frames=8, size=112, center_crop=1.0)
    requests = [evaluation_request(path.name, path, probe(path), clip=clip) for path in paths]
    how = how or ("auto" if device().type == "cuda" else "dali")
    data = Data.model_validate({"decoder": how, "threads": min(8, os.cpu_count() or 1)})
    loader = ClipLoader(clip=clip, batch=len(requests), data=data, device=device())
    kind = choose_decoder(data, device())
    for number, batch in enumerate(loader.batches([requests] * times)):
        for bad in batch.bad:
            record.check(f"{name}: {bad.request.id} is decoded", False, bad.reason)
        for request, made in zip(batch.requests, batch.clips.cpu(), strict=True):
            true = torch.from_numpy(decode_clips(request.path, request, size=clip.size)[0])
            difference = (made.float() - true.float()).abs().mean().item()
            if not number:
                by = "DALI" if decodable(probe(request.path), kind, loader._limits) else "PyAV"
                record.row(table, video=name, file=request.id, sent_to=by, mean_difference=difference)
            record.check(f"as by PyAV: {name}, {request.id}", difference < LIMIT, f"mean difference {difference:.2f}")


def _kept(name: str) -> Path:
    path = Path(__file__).resolve().parents[2] / "tests" / "data" / name
    if not path.is_file():
        raise Missing(name, f"there is no {path}")
    return path


def _folder(record: Record, name: str) -> Path:
    folder = record.work / "films" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _reason(error: Exception) -> str:
    """DALI's own words, which stand behind the name of the operator."""
    rows = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [row for row in rows if row.startswith("[/opt") or "rror" in row]
    return (told[1] if len(told) > 1 else rows[0] if rows else "RuntimeError")[:200]
