"""What a call of `score` asks for, checked before anything is read, and how it is carried out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssv2rt.core.cores import cores
from ssv2rt.core.errors import UsageError
from ssv2rt.core.recipes import Clip, Data, with_views
from ssv2rt.core.temporary import own_temporary_files
from ssv2rt.core.worker_pool import WorkerSettings
from ssv2rt.engines.bundle import Bundle
from ssv2rt.engines.find import engine_named
from ssv2rt.scoring.devices import devices_for
from ssv2rt.scoring.discover import Shard, check_inputs
from ssv2rt.scoring.ground_truth import BEST, GroundTruth, videos_of
from ssv2rt.scoring.journal import journal_path
from ssv2rt.scoring.metadata import Metadata, metadata_of_engine
from ssv2rt.scoring.parquet_parts import check_parts
from ssv2rt.scoring.row import EMBEDDING, LOGITS, columns
from ssv2rt.scoring.run import InputVideos, Output, Summary
from ssv2rt.scoring.run import score as score_all
from ssv2rt.scoring.segments import Windows
from ssv2rt.scoring.writers import check_output
from ssv2rt.video.storage import forget_local_copies

if TYPE_CHECKING:
    from ssv2rt.scoring.ray_backend import RayBackend


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """The options of `score`, under the names that the command has them.

    Raises:
        UsageError: two options exclude each other, or a value is out of range.
        UserError: the output exists, or cannot be written.
    """

    inputs: tuple[str, ...]
    out: Path
    engine: str | None = None
    """Folder of an engine, or its name or precision among those of the run."""
    run: str | None = None
    top_k: int | None = None
    logits: bool = False
    embeddings: bool = False
    annotations: Path | None = None
    """An annotation file, or a data set."""
    split: str | None = None
    """With a data set as `annotations`: see `GroundTruth.read`."""
    views: str | None = None
    window: float | None = None
    hop: float | None = None
    merged: bool = False
    threads: int | None = None
    cpu_share: float = 0.0
    devices: str | None = None
    cluster: str | None = None
    timeout: float = 60.0
    shard: str | None = None
    sort: bool = False
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        # With a journal beside it, an output is that of the same call, stopped as it was done.
        replace = self.overwrite or (self.resume and journal_path(self.out).is_file())
        check_output(self.out, overwrite=replace)
        if self.cluster:
            check_parts(self.out, overwrite=replace)
            if self.devices:
                raise UsageError(
                    "--devices are those of this machine, and --cluster takes all of the cluster's; leave one out"
                )
        if not self.inputs and not self.annotations:
            raise UsageError("nothing to score: name videos, folders, tar files or addresses")
        windows = self.windows
        if windows is None and (self.hop is not None or self.merged):
            raise UsageError("--hop and --merge go with --window; add it, in seconds")
        if math.isnan(self.timeout):
            raise UsageError("--timeout nan: give seconds, at least 1")
        if self.split and not self.annotations:
            raise UsageError(f"--split {self.split} is a split of --annotations; add that, or leave it out")
        if windows and self.annotations:
            raise UsageError("--annotations tell the label of a whole video; leave out --window")
        if self.merged and ((self.top_k or 1) > 1 or self.logits or self.embeddings):
            raise UsageError("--merge leaves one label in a row; leave out --top-k, --logits and --embeddings")

    @property
    def windows(self) -> Windows | None:
        """How windows slide; None where videos are scored as a whole."""
        return Windows.of(self.window, self.hop, self.merged) if self.window is not None else None

    @property
    def extra_columns(self) -> list[str]:
        return [name for name, wanted in ((LOGITS, self.logits), (EMBEDDING, self.embeddings)) if wanted]


@dataclass(frozen=True)
class ScoreResult:
    """What came of a request."""

    engine: Path
    summary: Summary


def is_done(out: Path, *, resume: bool, overwrite: bool) -> bool:
    """Whether an earlier call has left a whole output, so that nothing is left to go on with."""
    return resume and out.is_file() and not journal_path(out).is_file() and not overwrite


def score_as_requested(request: ScoreRequest) -> ScoreResult:
    """Scores videos as a request says.

    Raises:
        UsageError: the engine does not have what the request asks of it; or as `run.score`.
        UserError: there is no engine, there are no videos; or as `run.score`.
    """
    with own_temporary_files():
        try:
            return _score(request)
        finally:
            forget_local_copies()


def _score(request: ScoreRequest) -> ScoreResult:
    inputs = request.inputs
    if request.annotations:
        inputs = inputs or videos_of(request.annotations)
    if inputs:
        check_inputs(inputs)
    bundle = engine_named(request.engine, request.run)
    if request.embeddings and not bundle.info.embedding:
        raise UsageError(f"--embeddings: the engine gives none; rebuild it with `{bundle.info.rebuild}`")
    ground_truth = None
    if request.annotations:
        ground_truth = GroundTruth.read(request.annotations, bundle.info.labels, request.split)
    videos = InputVideos(inputs, Shard.parse(request.shard) if request.shard else None, ground_truth)
    top_k = _top_k(request, classes=len(bundle.info.labels))
    clip = with_views(bundle.info.clip, request.views) if request.views else bundle.info.clip
    # Top-5 is counted on more labels than a row may show.
    found = min(len(bundle.info.labels), max(top_k, BEST if ground_truth else 0))
    workers = _workers(request, bundle, clip, top_k=found)
    executor = _ray_backend(request.cluster, request, workers[0], bundle, clip) if request.cluster else nullcontext()
    with executor as backend:
        summary = score_all(
            videos,
            _output(request, metadata_of_engine(bundle, clip, request.windows), top_k=top_k),
            workers,
            _facts(request, bundle, clip, ground_truth, top_k=found),
            timeout=request.timeout,
            executor=backend,
            resume=request.resume,
            overwrite=request.overwrite,
        )
    return ScoreResult(bundle.path, summary)


def _top_k(request: ScoreRequest, *, classes: int) -> int:
    """Labels that a row shows."""
    if request.top_k and request.top_k > classes:
        raise UsageError(f"--top-k {request.top_k}: the engine has {classes} classes; take at most that")
    return request.top_k or (1 if request.merged else min(5, classes))


def _workers(request: ScoreRequest, bundle: Bundle, clip: Clip, *, top_k: int) -> Sequence[WorkerSettings]:
    """A process for each GPU, or one for the CPU."""
    on_gpu = bundle.info.on_gpu
    if request.cpu_share and not on_gpu:
        raise UsageError(
            f"--cpu-share {request.cpu_share:g}: the engine is for a CPU, which decodes all videos; leave it out"
        )
    # What each machine of a cluster has is for Ray to say.
    on_cluster: list[int | None] = [0] if on_gpu else [None]
    devices = on_cluster if request.cluster else devices_for(bundle.info, request.devices)
    threads = request.threads or (0 if request.cluster else max(1, cores() // len(devices)))
    options = {
        "bundle": str(bundle.path),
        "digest": bundle.digest,
        "top_k": top_k,
        "clip": clip,
        "data": Data(threads=threads, cpu_share=request.cpu_share),
        "extra_columns": request.extra_columns,
        "windows": request.windows,
    }
    return [WorkerSettings("ssv2rt.scoring.worker:make_scorer", options | {"device": device}) for device in devices]


def _output(request: ScoreRequest, metadata: Metadata, *, top_k: int) -> Output:
    in_windows, extra = request.windows is not None, request.extra_columns
    return Output(
        request.out,
        columns(
            top_k,
            windows=in_windows,
            merged=request.merged,
            expected=request.annotations is not None,
            extra_columns=extra,
        ),
        sort=request.sort,
        windows=request.windows,
        metadata=metadata,
        parts=columns(top_k, windows=in_windows, extra_columns=extra) if request.cluster else (),
    )


def _facts(
    request: ScoreRequest, bundle: Bundle, clip: Clip, ground_truth: GroundTruth | None, *, top_k: int
) -> dict[str, Any]:
    """What scores depend on; a call that goes on with another needs the same."""
    windows = request.windows
    later = {"average"} if clip.average == "probabilities" else set()  # journals from before this setting lack it
    return {
        "engine": bundle.digest,
        "clip": clip.model_dump(mode="json", exclude=later),
        "top_k": top_k,
        "columns": request.extra_columns,
        "windows": [windows.seconds, windows.hop] if windows else [],
        "shard": request.shard or "1/1",
        "annotations": ground_truth.digest if ground_truth else "",
    }


def _ray_backend(
    address: str, request: ScoreRequest, settings: WorkerSettings, bundle: Bundle, clip: Clip
) -> RayBackend:
    from ssv2rt.scoring.ray_backend import RayBackend

    batch = max(1, bundle.info.batch.best // (clip.views[0] * clip.views[1]))
    return RayBackend(address, settings, bundle=bundle, batch=batch, timeout=request.timeout)
