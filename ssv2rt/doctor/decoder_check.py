"""Tries DALI's decoder on this machine: which kinds of videos it decodes like PyAV, how fast it is in comparison, and how
long it takes for the first clip of a video.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import av
import numpy as np
import torch

from ssv2rt.core.errors import UserError
from ssv2rt.core.recipes import Clip, Data
from ssv2rt.dataset.scenes import draw_clip
from ssv2rt.dataset.synthetic import RATE, encode_vp9, mux_webm
from ssv2rt.pipelines.decoder_choice import choose_decoder, usual_threads
from ssv2rt.pipelines.hand_over import hand_over, read_coded
from ssv2rt.pipelines.loaded_clip import Decoder, GraphFailed
from ssv2rt.pipelines.loader import ClipLoader
from ssv2rt.pipelines.request_source import evaluation_request
from ssv2rt.video.probe import probe

_CLIPS = 4
"""Videos of each kind."""
_FRAMES = 24


@dataclass(frozen=True)
class DecoderCheck:
    """The results of trying DALI's decoder."""

    kinds: dict[str, str]
    """For each kind of video, the decoder that is used for it, and why."""
    nvdec: float
    """Clips per second that DALI's decoder reaches on videos like those of SSv2, 16 frames per clip."""
    pyav: float
    """Clips per second that PyAV reaches on the same videos, on all cores."""
    first: float
    """Milliseconds for the first clip, including the creation of a decoder."""
    next: float
    """Milliseconds for the same clip again. This is less if DALI reuses its decoder."""

    @property
    def keeps_decoders(self) -> bool:
        """Whether DALI reuses a decoder for the next video of the same size."""
        return self.next < max(20.0, 0.3 * self.first)


def check_decoder(device: torch.device, decoder: str = "nvdec", *, rounds: int = 20) -> DecoderCheck:
    """Decodes some synthetic videos with DALI and with PyAV, compares the frames and measures the rates.

    Args:
        device: device that clips are decoded to.
        decoder: 'nvdec', or 'dali' for DALI's CPU decoder.
        rounds: how often the same video is decoded, and how many batches are timed.

    Raises:
        UserError: DALI's decoder does not work on this machine.
    """
    data = Data.model_validate({"decoder": decoder, "threads": usual_threads()})
    clip = Clip(frames=16, size=112, center_crop=1.0)
    with TemporaryDirectory(prefix="ssv2rt-") as folder:
        videos = _videos(Path(folder))
        ssv2_like_set = [path for path in videos if path.suffix == ".webm"]
        try:
            times = _times(ssv2_like_set[0], choose_decoder(data, device), device, rounds)
        except GraphFailed as error:
            raise UserError(f"DALI cannot decode: {error}; decode with PyAV instead: data.decoder = 'pyav'") from None
        loader = ClipLoader(clip=clip, batch=_CLIPS, data=data, device=device)
        requests = [evaluation_request(path.name, path, probe(path), clip=clip) for path in videos]
        for _ in loader.batches([requests[at : at + _CLIPS] for at in range(0, len(requests), _CLIPS)]):
            pass
        batches = [[request for request in requests if request.path in ssv2_like_set]] * rounds
        rates = []
        for how in (loader, ClipLoader(clip=clip, batch=_CLIPS, data=Data(decoder="pyav"), device=device)):
            start = time.perf_counter()
            for _ in how.batches(batches):
                pass
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            rates.append(rounds * len(batches[0]) / (time.perf_counter() - start))
    kinds = {kind: str(decision) for kind, decision in sorted(loader.decoder_trust.decisions.items())}
    return DecoderCheck(kinds, rates[0], rates[1], first=1000 * times[0], next=1000 * median(times[1:]))


def _times(path: Path, decoder: Decoder, device: torch.device, rounds: int) -> list[float]:
    """Seconds that DALI takes for the same frames of a video, for each of several repetitions."""
    from ssv2rt.pipelines.dali_graph import FrameGraph

    graph = FrameGraph(decoder, (device.index or 0) if device.type == "cuda" else None)
    handed = hand_over(read_coded(path, codec="vp9"), np.arange(0, _FRAMES, 3))
    times = []
    for _ in range(max(2, rounds)):
        start = time.perf_counter()
        graph.decode(handed, handed.positions("decoded" if decoder == "mixed" else "shown"))
        times.append(time.perf_counter() - start)
    return times


def _videos(folder: Path) -> list[Path]:
    """Writes some videos of each kind, and returns their paths."""
    makers: dict[str, Callable[[np.ndarray], bytes]] = {
        "vp9.webm": lambda scene: mux_webm(encode_vp9(scene, "first"), 427, 240, "first"),
        "plain.mp4": lambda scene: _h264(scene, "bframes=0"),
        "reordered.mp4": lambda scene: _h264(scene, "bframes=3"),
    }
    paths = []
    for name, make in makers.items():
        for number in range(_CLIPS):
            width = 427 if name.endswith("webm") else 432
            scene = draw_clip(np.random.default_rng(number), number % 3, _FRAMES, width, 240)
            path = folder / f"{number}-{name}"
            path.write_bytes(make(scene))
            paths.append(path)
    return paths


def _h264(scene: np.ndarray, parameters: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"x264-params": parameters, "preset": "veryfast"})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = scene.shape[1:3]
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, RATE)
        for number, picture in enumerate(scene):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()
