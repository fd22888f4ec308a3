"""Draws a contact sheet of the clips that the network will see, after decoding and augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ssv2rt.core.atomic_files import atomic_file, remove_partial_files
from ssv2rt.core.errors import UserError, os_errors_as_user_errors
from ssv2rt.core.log import printable
from ssv2rt.core.recipes import Recipe
from ssv2rt.dataset.listing import escape_non_utf8
from ssv2rt.dataset.manifest import Split
from ssv2rt.models.grad_cam import grad_cam, overlay
from ssv2rt.models.weights import TrainedModel
from ssv2rt.pipelines.loader import ClipLoader
from ssv2rt.pipelines.request_source import clip_rng, evaluation_request, evaluation_request_of, training_request
from ssv2rt.pipelines.requests import ClipRequest
from ssv2rt.report.fonts import with_fonts
from ssv2rt.video.container import BadVideo
from ssv2rt.video.probe import probe

Row = tuple[str, ClipRequest]
"""A caption and the clip to show below it."""


def dataset_rows(split: Split, recipe: Recipe, *, clips: int, draws: int, seed: int) -> list[Row]:
    """Rows for clips of a data set: each as evaluation sees it, and then as training sees it in its first epochs.

    Args:
        split: the clips to choose from.
        recipe: sets the clip, the augmentation and the training seed.
        clips: number of clips, of as many different classes as possible.
        draws: number of training epochs to show for each clip.
        seed: for the choice of the clips.
    """
    order = clip_rng(seed, 0, "preview").permutation(len(split))
    first_of_class = list({int(split.classes[row]): int(row) for row in order[::-1]}.values())[::-1]
    rest = [int(row) for row in order if int(row) not in set(first_of_class)]
    rows: list[Row] = []
    for row in (first_of_class + rest)[:clips]:
        plain = evaluation_request_of(split, row, clip=recipe.clip.one_view())
        rows.append((f"{plain.id}: {_name(split.labels, plain.label)}", plain))
        for epoch in range(1, draws + 1):
            augmented = training_request(
                split, row, clip=recipe.clip, augment=recipe.augment, seed=recipe.train.seed, epoch=epoch
            )
            rows.append((_describe_augmentation(augmented, split.labels, epoch), augmented))
    return rows


def video_rows(path: Path, recipe: Recipe) -> list[Row]:
    """Rows for a video, one for each view that scoring uses.

    Raises:
        UserError: the video cannot be read.
    """
    views = recipe.clip.views
    try:
        meta = probe(path)
    except BadVideo as error:
        raise UserError(f"'{path}' cannot be shown: {error}; give another video") from None
    request = evaluation_request(path.name, path, meta, clip=recipe.clip)
    rows = []
    for moment in range(views[0]):
        for square in range(views[1]):
            one_view = ClipRequest(
                request.id,
                path,
                request.frames[moment : moment + 1],
                (request.crops[square],),
                request.frame_size,
                request.video_frames,
            )
            view = (
                ""
                if views == (1, 1)
                else f", temporal clip {moment + 1} of {views[0]}, crop {square + 1} of {views[1]}"
            )
            rows.append((f"{path.name}{view}", one_view))
    return rows


def draw_sheet(rows: Sequence[Row], recipe: Recipe, out: Path, explained_by: TrainedModel | None = None) -> int:
    """Decodes the clips with the loader of training and scoring, and writes them to a PNG file, one row each.

    Args:
        rows: what to show.
        recipe: how clips are read.
        out: the file.
        explained_by: a network. Its prediction of each clip is told, with an overlay of what speaks for it.

    Returns:
        Number of clips that could not be decoded; they are left out.

    Raises:
        UserError: no clip could be decoded, or the file cannot be written.
    """
    loader = ClipLoader(
        clip=recipe.clip.one_view(), batch=8, data=recipe.data, device=torch.device("cpu"), augment=True
    )
    captions = [caption for caption, _ in rows]
    requests = [request for _, request in rows]
    shown: list[tuple[str, ClipRequest, np.ndarray]] = []
    bad = 0
    for start in range(0, len(requests), 8):
        (batch,) = loader.batches([requests[start : start + 8]])
        bad += len(batch.bad)
        pictures, predicted = _explained(batch.clips, explained_by) if explained_by else (batch.clips.numpy(), None)
        clips = iter(pictures)
        told = iter(predicted or ())
        failed = {id(clip.request) for clip in batch.bad}
        for caption, request in zip(captions[start : start + 8], requests[start : start + 8], strict=True):
            if id(request) not in failed:
                caption += f"; predicted: {next(told)}" if predicted else ""
                shown.append((caption, request, next(clips).copy()))
    if not shown:
        raise UserError("none of the clips can be decoded; check the videos with `ssv2rt index`")
    _draw(shown, out)
    return bad


def _explained(clips: torch.Tensor, trained: TrainedModel) -> tuple[np.ndarray, list[str]]:
    """Clips uint8 (N, T, S, S, 3) with an overlay of what speaks for the predicted class, and predictions as text."""
    if not len(clips):
        return clips.numpy(), []
    with torch.inference_mode():
        best, classes = trained.model(clips).softmax(1).max(1)
    heat = grad_cam(trained.model, clips, classes.clone()).numpy()
    pictures = np.stack([overlay(clip, part) for clip, part in zip(clips.numpy(), heat, strict=True)])
    return pictures, [f"{trained.labels[c]} {p:.0%}" for c, p in zip(classes.tolist(), best.tolist(), strict=True)]


def _draw(shown: Sequence[tuple[str, ClipRequest, np.ndarray]], out: Path) -> None:
    from matplotlib.figure import Figure

    length = shown[0][2].shape[0]
    side = 1.0  # of a frame, in inches
    figure = Figure(figsize=(0.1 + side * length, (side + 0.42) * len(shown) + 0.1), dpi=110, facecolor="white")
    grid = figure.subplots(len(shown), 1, squeeze=False)
    figure.subplots_adjust(left=0.004, right=0.996, top=1 - 0.3 / figure.get_figheight(), bottom=0.01, hspace=0.42)
    for (caption, request, clip), axes in zip(shown, grid[:, 0], strict=True):
        size = clip.shape[1]
        gap = max(1, size // 40)
        strip = np.full((size, length * (size + gap) - gap, 3), 255, np.uint8)
        for number, frame in enumerate(clip):
            strip[:, number * (size + gap) : number * (size + gap) + size] = frame
        axes.imshow(strip, interpolation="antialiased")
        axes.set_axis_off()
        indent = "" if request.erased is None and not caption.startswith("epoch") else "    "
        frames = " ".join(map(str, request.frames[0]))
        title = f"{indent}{caption}     frames {frames} of {request.video_frames}"
        axes.set_title(printable(escape_non_utf8(title)), loc="left", fontsize=8, pad=3, parse_math=False)
    with os_errors_as_user_errors(f"cannot write '{out}'", "choose another --out"):
        remove_partial_files(out)
        with with_fonts(figure), atomic_file(out) as temporary:
            figure.savefig(temporary, format="png")


def _name(labels: Sequence[str], label: int) -> str:
    return labels[label] if label >= 0 else "no label"


def _describe_augmentation(request: ClipRequest, labels: Sequence[str], epoch: int) -> str:
    """Caption of a training clip: its epoch and augmentations."""
    parts = [f"epoch {epoch}"]
    if request.flip:
        parts.append(f"mirrored: {_name(labels, request.label)}")
    if request.color.saturation == 0:
        parts.append("gray")
    if request.erased:
        parts.append("erased")
    parts += [f"{name} {amount:.2g}" if amount else name for name, amount in request.operations]
    return ", ".join(parts)
