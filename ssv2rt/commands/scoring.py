"""The commands that score videos, and put the results of several calls together."""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ssv2rt.commands.output import print_facts
from ssv2rt.core.errors import UsageError

if TYPE_CHECKING:
    from ssv2rt.core.recipes import Clip
    from ssv2rt.engines.bundle import Bundle
    from ssv2rt.scoring.ray_backend import RayBackend
    from ssv2rt.scoring.worker import WorkerSettings

logger = logging.getLogger(__name__)


@click.command()
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Predictions: .csv, .parquet or .jsonl.")
@click.option("--engine", type=click.Path(path_type=Path), help="A bundle. Default: the newest of the newest run.")
@click.option("--run", help="The run whose newest engine is used.")
@click.option("--top-k", type=click.IntRange(min=1), help="Labels per video. Default: 5.")
@click.option("--logits", is_flag=True, help="Also the scores of all classes, as logarithms.")
@click.option("--embeddings", is_flag=True, help="Also what the network sees in each video: its pooled features.")
@click.option("--annotations", type=click.Path(path_type=Path), help="Of SSv2: only its clips, with top-1 and top-5.")
@click.option("--views", help="Moments x squares of each video that are averaged, such as 2x3. Default: the run's.")
@click.option("--window", type=float, help="Seconds of a window that slides over each video, with a row for each.")
@click.option("--hop", type=float, help="Seconds from one window to the next. Default: half a window.")
@click.option("--merge", "merged", is_flag=True, help="Neighbouring windows of the same label become one row.")
@click.option(
    "--threads", type=click.IntRange(min=1, max=1024), help="Decoding threads for each GPU. Default: one a core."
)
@click.option(
    "--cpu-share",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="On a GPU: share of the videos that CPUs decode beside NVDEC.",
)
@click.option("--devices", help="GPUs by number, such as 0,2. Default: all that are visible.")
@click.option(
    "--cluster", metavar="auto|HOST:PORT", help="Score on a Ray cluster; auto: one that is there, or a new one."
)
@click.option("--timeout", type=click.FloatRange(min=1), default=60, show_default=True, help="Seconds for a video.")
@click.option("--shard", help="Only the third of sixteen shares, by path: 3/16.")
@click.option("--sort", is_flag=True, help="Rows in the order of their paths, not in that of scoring.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted call.")
@click.option("--overwrite", is_flag=True, help="Replace the output file, and what an interrupted call has left.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def score(
    inputs: tuple[str, ...],
    out: Path,
    engine: Path | None,
    run: str | None,
    top_k: int | None,
    logits: bool,
    embeddings: bool,
    annotations: Path | None,
    views: str | None,
    window: float | None,
    hop: float | None,
    merged: bool,
    threads: int | None,
    cpu_share: float,
    devices: str | None,
    cluster: str | None,
    timeout: float,
    shard: str | None,
    sort: bool,
    resume: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Score videos: one row each, or one for each window, whatever happens.

    INPUT is a file, a folder with all below it, a tar file, an address such as s3://bucket/clips, a pattern in quotes,
    @list.txt, or - for names on stdin. With --annotations, it is `videos` beside them unless it is named.

    With --cluster, a process scores on each GPU of a Ray cluster, or on each share of its cores. The machines need the same
    ssv2rt, and the videos under the same paths or addresses: one that is not where a machine looks has `error: missing`. The
    engine is sent to them. Rows are also in OUT.parts, 10,000 to a Parquet file, as they come.
    """
    from contextlib import nullcontext

    from ssv2rt.core.cores import cores
    from ssv2rt.core.recipes import Data, with_views
    from ssv2rt.core.run_folders import find_run
    from ssv2rt.engines.bundle import INFO, find_bundle, open_bundle, sha256
    from ssv2rt.scoring.devices import devices_for
    from ssv2rt.scoring.discover import Shard, check_inputs
    from ssv2rt.scoring.ground_truth import BEST, GroundTruth, videos_of
    from ssv2rt.scoring.journal import journal_of
    from ssv2rt.scoring.parquet_parts import check_parts
    from ssv2rt.scoring.row import EMBEDDING, LOGITS, columns
    from ssv2rt.scoring.run import Output, Videos
    from ssv2rt.scoring.run import score as score_all
    from ssv2rt.scoring.segments import Windows
    from ssv2rt.scoring.worker import WorkerSettings
    from ssv2rt.scoring.writers import check_output

    begun = journal_of(out).is_file()
    if resume and out.is_file() and not begun and not overwrite:
        logger.info(f"'{out}' is there and whole, by an earlier call; nothing is left to do (--overwrite scores anew)")
        if as_json:
            print_facts({"out": str(out), "left": 0}, as_json)
        return
    # With a journal beside it, an output is that of the same call, stopped as it was done.
    check_output(out, overwrite=overwrite or (resume and begun))
    if cluster:
        check_parts(out, overwrite=overwrite or (resume and begun))
        if devices:
            raise UsageError(
                "--devices are those of this machine, and --cluster takes all of the cluster's; leave one out"
            )
    if not inputs and not annotations:
        raise UsageError("nothing to score: name videos, folders, tar files or addresses")
    windows = Windows.of(window, hop, merged) if window is not None else None
    if windows is None and (hop is not None or merged):
        raise UsageError("--hop and --merge go with --window; add it, in seconds")
    if engine and run:
        raise UsageError(f"--engine {engine} and --run {run} both name an engine; leave one out")
    if math.isnan(timeout):
        raise UsageError("--timeout nan: give seconds, at least 1")
    if windows and annotations:
        raise UsageError("--annotations tell the label of a whole video; leave out --window")
    if merged and ((top_k or 1) > 1 or logits or embeddings):
        raise UsageError("--merge leaves one label in a row; leave out --top-k, --logits and --embeddings")
    extra_columns = [name for name, wanted in ((LOGITS, logits), (EMBEDDING, embeddings)) if wanted]
    inputs = inputs or (videos_of(annotations),) if annotations else inputs
    check_inputs(inputs)
    bundle = open_bundle(engine if engine else find_bundle(find_run(run)))
    if embeddings and not bundle.info.embedding:
        raise UsageError(f"--embeddings: the engine gives none; rebuild it with `{bundle.info.rebuild}`")
    ground_truth = GroundTruth.read(annotations, bundle.info.labels) if annotations else None
    videos = Videos(inputs, Shard.parse(shard) if shard else None, ground_truth)
    classes = len(bundle.info.labels)
    if top_k and top_k > classes:
        raise UsageError(f"--top-k {top_k}: the engine has {classes} classes; take at most that")
    top_k = top_k or (1 if merged else min(5, classes))
    clip = with_views(bundle.info.clip, views) if views else bundle.info.clip
    on_gpu = bundle.info.target.startswith("sm")
    if cpu_share and not on_gpu:
        raise UsageError(f"--cpu-share {cpu_share:g}: the engine is for a CPU, which decodes all videos; leave it out")
    # What each machine of a cluster has is for Ray to say.
    gpus = ([0] if on_gpu else [None]) if cluster else devices_for(bundle.info.target, devices)
    threads = threads or (0 if cluster else max(1, cores() // len(gpus)))
    options = {
        "bundle": str(bundle.path),
        "top_k": min(classes, max(top_k, BEST if ground_truth else 0)),
        "clip": clip,
        "data": Data(threads=threads, cpu_share=cpu_share),
        "extra_columns": extra_columns,
        "windows": windows,
    }
    workers = [WorkerSettings("ssv2rt.scoring.worker:make_scorer", options | {"device": device}) for device in gpus]
    facts = {
        "engine": sha256(bundle.path / INFO),
        "clip": clip.model_dump(mode="json"),
        "top_k": options["top_k"],
        "columns": extra_columns,
        "windows": [windows.seconds, windows.hop] if windows else [],
        "shard": shard or "1/1",
        "annotations": sha256(annotations) if annotations else "",
    }
    output = Output(
        out,
        columns(
            top_k,
            windows=windows is not None,
            merged=merged,
            expected=ground_truth is not None,
            extra_columns=extra_columns,
        ),
        sort=sort,
        windows=windows,
        parts=columns(top_k, windows=windows is not None, extra_columns=extra_columns) if cluster else (),
    )
    with _ray_backend(cluster, workers[0], bundle, clip, timeout) if cluster else nullcontext() as executor:
        summary = score_all(
            videos, output, workers, facts, timeout=timeout, executor=executor, resume=resume, overwrite=overwrite
        )
    found = {"out": str(out), "engine": str(bundle.path), "videos": summary.videos, "errors": summary.errors}
    decoders = {f"decoder of {kind}": str(decision) for kind, decision in sorted(summary.trusted.items())}
    resumed = {"resumed after": summary.resumed} if summary.resumed else {}
    print_facts(found | resumed | summary.accuracy | decoders, as_json)
    if summary.errors:
        sys.exit(3)


def _ray_backend(address: str, settings: WorkerSettings, bundle: Bundle, clip: Clip, timeout: float) -> RayBackend:
    from ssv2rt.scoring.ray_backend import RayBackend

    batch = max(1, bundle.info.batch.best // (clip.views[0] * clip.views[1]))
    return RayBackend(address, settings, bundle=bundle, batch=batch, timeout=timeout)


@click.command()
@click.argument("parts", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="One file: .csv, .parquet or .jsonl.")
@click.option("--expect", multiple=True, metavar="INPUT", help="What was scored, as for `score`: says what is missing.")
@click.option("--overwrite", is_flag=True, help="Replace the output file.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def merge(parts: tuple[Path, ...], out: Path, expect: tuple[str, ...], overwrite: bool, as_json: bool) -> None:
    """Put outputs of `score` together, such as those of several shards; says what is doubled or missing."""
    from ssv2rt.scoring.discover import check_inputs, discover
    from ssv2rt.scoring.merge import merge as merge_parts
    from ssv2rt.scoring.writers import check_output

    check_output(out, overwrite=overwrite)
    if expect:
        check_inputs(expect)
    merged = merge_parts(parts, out, discover(expect) if expect else ())
    counts = {"doubled": merged.doubled, "missing": merged.missing}
    print_facts({"out": str(out), "videos": merged.videos, "errors": merged.errors, **counts}, as_json)
    if merged.missing:
        sys.exit(1)
    if merged.errors:
        sys.exit(3)
