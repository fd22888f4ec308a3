"""`ssv2rt.load`: a network that predicts the classes of videos, in this process or in worker processes.

Letters: N clips or videos, T frames, S size, D features, K classes, V views.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ssv2rt.api.inputs import Frames, Input, each_input
from ssv2rt.api.network import Network, network_of
from ssv2rt.api.results import Prediction, Window, facts_of
from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.core.recipes import Clip, Data, with_views
from ssv2rt.engines.base import Outputs, Runner
from ssv2rt.pipelines.request_source import evaluation_request
from ssv2rt.pipelines.samplers import in_batches
from ssv2rt.scoring.predictor import Predictor, start_in_batches
from ssv2rt.scoring.row import EMBEDDING, IS_LAST, LOGITS, WINDOW, Row
from ssv2rt.scoring.scorer import Scorer
from ssv2rt.scoring.segments import Windows
from ssv2rt.scoring.supervisor import Supervisor
from ssv2rt.scoring.video_sources import Video
from ssv2rt.scoring.window_scorer import WindowScorer
from ssv2rt.video.decode import clips_of_frames
from ssv2rt.video.probe import VideoMeta

Clips = TypeVar("Clips", np.ndarray, torch.Tensor)


def load(
    source: str | Path | None = None,
    *,
    engine: str | None = None,
    workers: int = 0,
    threads: int = 0,
    timeout: float = 60.0,
) -> Model:
    """Loads a network to predict with.

    Args:
        source: name or folder of a run, folder of an engine, or name of a published network; by default the newest run. Of a
            run, the newest engine that runs on this machine is loaded, or its best checkpoint in PyTorch, in fp32, if there
            is none. The weights of a published network are downloaded at their first use.
        engine: of a run: the name or precision of an engine, such as "int8"; "pytorch" for the checkpoint.
        workers: processes that decode and predict: a video that crashes its process then costs only itself, as in `ssv2rt
            score`. 0: this process.
        threads: decoding threads of each process; 0 for one per core, divided among the workers.
        timeout: with workers: seconds without an answer after which a process is restarted.

    Raises:
        UserError: there is no such run or engine, it is damaged or does not run here, or weights cannot be downloaded.
        UsageError: `workers`, `threads` or `timeout` is out of range.
    """
    if workers < 0 or threads < 0 or not timeout >= 1:
        raise UsageError(f"workers = {workers}, threads = {threads}, timeout = {timeout:g}: at least 0, 0 and 1 second")
    return Model(network_of(source, engine), workers=workers, threads=threads, timeout=timeout)


class Model:
    """A loaded network. Made by `ssv2rt.load`.

    Threads may share it; the engine computes one batch at a time.
    """

    def __init__(self, network: Network, *, workers: int, threads: int, timeout: float) -> None:
        self._network, self._workers, self._timeout = network, workers, timeout
        self._data = Data(threads=threads)
        self._lock = threading.RLock()
        self._loaded: Runner | None = None
        if not workers:
            self._runner()  # a damaged engine is noticed here

    @property
    def labels(self) -> tuple[str, ...]:
        """The K class names, in order."""
        return self._network.bundle.info.labels

    @property
    def clip(self) -> Clip:
        """How clips are read from a video, as `[clip]` of a recipe sets it. `clip.frames` is T, `clip.size` is S."""
        return self._network.bundle.info.clip

    @property
    def features(self) -> int:
        """D, the number of features that `embed` gives; 0 if the engine gives none."""
        return self._network.bundle.info.embedding

    def __repr__(self) -> str:
        info = self._network.bundle.info
        return (
            f"<ssv2rt.Model {self._network.name}: {info.model}, {info.precision} by {info.backend}, {len(info.labels)} "
            f"classes, clips of {info.clip.frames} frames of {info.clip.size}x{info.clip.size}>"
        )

    def predict(
        self, inputs: Input | Iterable[Input], *, views: str | None = None, embeddings: bool = False
    ) -> Iterator[Prediction]:
        """Predicts the class of each video, in order, while later ones are being decoded.

        Args:
            inputs: one of these or an iterable of them, which may be endless: a path of a video, a folder (with its
                subfolders), a tar file, a URL, a pattern, "@list.txt"; the bytes of a video; or its frames, uint8 RGB (T, H,
                W, 3), as array or tensor. T is the whole video: clips are sampled from it as from a file.
            views: temporal clips x spatial crops to average, such as "2x3"; by default as the network was trained.
            embeddings: also give the features before the classifier.

        Yields:
            A `Prediction` for each video, also for those that cannot be read.

        Raises:
            UsageError: `views` is invalid, `embeddings` is set and the engine gives no features, an input is of another type,
                an array of another shape, or a pattern matches nothing.
            UserError: the only input has no videos, or the machine, not a video, is the cause of an error.
        """
        clip = with_views(self.clip, views) if views else self.clip
        columns = [LOGITS, EMBEDDING] if embeddings else [LOGITS]
        self._check_embeddings(embeddings)
        return self._predict(inputs, clip, columns)

    def windows(
        self, inputs: Input | Iterable[Input], *, seconds: float, hop: float | None = None, embeddings: bool = False
    ) -> Iterator[Window]:
        """Predicts the class of each window that slides over videos.

        Args:
            inputs: as in `predict`, but no arrays, since their times are unknown.
            seconds: length of a window.
            hop: seconds between the starts of windows; by default half a window.
            embeddings: also give the features before the classifier.

        Yields:
            A `Window` for each, in order. Where a video cannot be decoded, one with an error, and the rest of it is left out.

        Raises:
            UsageError: `seconds` or `hop` is out of range, or as `predict`.
        """
        windows = Windows.of(seconds, hop, merge=False)
        self._check_embeddings(embeddings)
        return self._slide(inputs, windows, [LOGITS, EMBEDDING] if embeddings else [LOGITS])

    def embed(
        self, inputs: Input | Iterable[Input], *, views: str | None = None, on_error: str = "raise"
    ) -> np.ndarray:
        """The features of videos before the classifier.

        Args:
            inputs: as in `predict`.
            views: as in `predict`.
            on_error: "raise": a video that cannot be read raises an error; "nan": its row is filled with NaN.

        Returns:
            float32 (N, D): a row for each video, in order.

        Raises:
            UsageError: as `predict`, or `on_error` is unknown.
            UserError: as `predict`, or a video cannot be read.
        """
        if on_error not in ("raise", "nan"):
            raise UsageError(f"on_error = {on_error!r}: it is 'raise' or 'nan'")
        rows = []
        for prediction in self.predict(inputs, views=views, embeddings=True):
            if prediction.embedding is None and on_error == "raise":
                raise UserError(
                    f"'{prediction.video}' has no features ({prediction.status}); leave it out, or pass on_error='nan'"
                )
            rows.append(prediction.embedding if prediction.embedding is not None else np.full(self.features, np.nan))
        return np.asarray(rows, np.float32).reshape(-1, self.features)

    def logits(self, clips: Clips) -> Clips:
        """Runs the network on finished clips.

        Args:
            clips: uint8 RGB (N, T, S, S, 3), as array or tensor; N may be any number.

        Returns:
            float32 (N, K): an array for an array, and a tensor on the CPU for a tensor.

        Raises:
            UsageError: the clips have another shape or type.
        """
        tensor = torch.as_tensor(clips)
        shape = (self.clip.frames, self.clip.size, self.clip.size, 3)
        if tensor.dtype != torch.uint8 or tuple(tensor.shape[1:]) != shape:
            raise UsageError(
                f"clips of {tensor.dtype} {tuple(tensor.shape)}: this network takes torch.uint8 "
                f"(N, {', '.join(map(str, shape))})"
            )
        predictor = self._predictor([LOGITS])
        logits = torch.empty(len(tensor), len(self.labels))
        for first in range(0, len(tensor), predictor.batch):
            part = slice(first, first + predictor.batch)
            (wait,) = start_in_batches(predictor.runner, tensor[part].to(predictor.device), predictor.batch)
            logits[part] = wait().logits
        return logits.numpy() if isinstance(clips, np.ndarray) else logits

    def _check_embeddings(self, wanted: bool) -> None:
        if wanted and not self.features:
            raise UsageError(
                f"{self!r} gives no features; rebuild the engine with `{self._network.bundle.info.rebuild}`"
            )

    def _runner(self) -> Runner:
        """The engine, loaded at its first use. Worker processes load their own."""
        with self._lock:
            if self._loaded is None:
                self._loaded = _Shared(self._network.runner(), self._lock)
            return self._loaded

    def _predictor(self, columns: list[str]) -> Predictor:
        return Predictor(self._network.bundle, top_k=1, extra_columns=columns, runner=self._runner())

    def _predict(self, inputs: Input | Iterable[Input], clip: Clip, columns: list[str]) -> Iterator[Prediction]:
        # Videos go through the loader in batches, frames in memory one after the other: in the order of the inputs.
        for in_memory, group in itertools.groupby(each_input(inputs), lambda one: isinstance(one, Frames)):
            if in_memory:
                predictor = self._predictor(columns)
                for frames in group:
                    assert isinstance(frames, Frames)
                    row = _row_of_frames(frames, predictor, clip)
                    yield Prediction(**facts_of(row, self.labels, None))
                continue
            for video, row in self._rows(group, clip, columns, windows=None):
                yield Prediction(**facts_of(row, self.labels, video.location))

    def _slide(self, inputs: Input | Iterable[Input], windows: Windows, columns: list[str]) -> Iterator[Window]:
        def videos() -> Iterator[Video]:
            for one in each_input(inputs):
                if isinstance(one, Frames):
                    raise UsageError(f"{one.name}: the times of its frames are unknown; use predict, or give a video")
                yield one

        for video, row in self._rows(videos(), self.clip, columns, windows):
            facts = facts_of(row, self.labels, video.location)
            yield Window(**facts, start=row["start"], end=row.get("end") or row["start"])

    def _rows(
        self, videos: Iterable[Any], clip: Clip, columns: list[str], windows: Windows | None
    ) -> Iterator[tuple[Video, Row]]:
        """Rows of scoring with their videos, in order."""
        known: dict[int, Video] = {}

        def tasks() -> Iterator[tuple[int, Video]]:
            for number, video in enumerate(videos):
                known[number] = video
                yield number, video

        if self._workers:
            settings = self._network.workers(
                self._workers, clip=clip, data=self._data, columns=columns, windows=windows
            )
            with Supervisor(settings, timeout=self._timeout) as supervisor:
                yield from _in_order(supervisor.score(tasks()), known, windows)
            return
        predictor = self._predictor(columns)
        scorer: Scorer | WindowScorer
        if windows:
            scorer = WindowScorer(predictor, data=self._data, clip=clip, windows=windows)
        else:
            scorer = Scorer(predictor, data=self._data, clip=clip)
        yield from _in_order(scorer.score(in_batches(tasks(), scorer.videos)), known, windows)


class _Shared(Runner):
    """A runner that several threads may use."""

    def __init__(self, runner: Runner, lock: AbstractContextManager[Any]) -> None:
        self._runner, self._lock, self.in_flight = runner, lock, runner.in_flight

    def start(self, clips: torch.Tensor) -> Callable[[], Outputs]:
        with self._lock:
            pending = self._runner.start(clips)

        def wait() -> Outputs:
            with self._lock:
                return pending()

        return wait


def _row_of_frames(frames: Frames, predictor: Predictor, clip: Clip) -> Row:
    count, height, width = frames.pixels.shape[:3]
    meta = VideoMeta(frames=count, width=width, height=height, duration=0.0, times=None)
    request = evaluation_request(frames.name, Path(frames.name), meta, clip=clip)
    clips = torch.from_numpy(clips_of_frames(frames.pixels, request, size=clip.size)).to(predictor.device)
    (row,) = predictor.start(clips, 1)()
    return {"video": frames.name, "frames": count, **row}


def _in_order(
    parts: Iterable[list[tuple[int, Row]]], videos: dict[int, Video], windows: Windows | None
) -> Iterator[tuple[Video, Row]]:
    """Rows in the order of their videos, which workers finish in any order.

    Args:
        parts: rows with the numbers of their videos.
        videos: by number. Those that are done are removed.
        windows: how windows slide; None if each video has one row.
    """
    turn = 0
    count: Counter[int] = Counter()
    waiting: dict[int, list[Row]] = {}
    for part in parts:
        for number, row in part:
            # A video whose process died is tried again from its first window.
            if row.get(WINDOW, count[number]) < count[number]:
                continue
            start = {"start": count[number] * windows.hop} if windows else {}
            waiting.setdefault(number, []).append(start | row)
            count[number] += 1
        while rows := waiting.pop(turn, None):
            yield from ((videos[turn], row) for row in rows)
            if rows[-1].get(IS_LAST, True):
                del videos[turn], count[turn]
                turn += 1
