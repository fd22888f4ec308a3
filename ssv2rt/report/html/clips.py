"""Clips of a split with what a network predicts of them, as a report shows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ssv2rt.core.hardware import choose_device
from ssv2rt.core.progress import Progress
from ssv2rt.core.recipes import Clip, Data
from ssv2rt.dataset.listing import escape_non_utf8
from ssv2rt.dataset.manifest import Split
from ssv2rt.models.clip_model import ClipModel, mean_over_views
from ssv2rt.models.grad_cam import grad_cam
from ssv2rt.pipelines.loader import ClipLoader
from ssv2rt.pipelines.request_source import clip_rng, evaluation_request_of
from ssv2rt.pipelines.requests import ClipRequest
from ssv2rt.pipelines.samplers import in_batches
from ssv2rt.report.html.strips import SIDE, Strips
from ssv2rt.video.container import OK

BATCH = 8
TOP = 5
RIGHT, WRONG = "right", "wrong"


@dataclass
class ShownClip:
    """A clip and its prediction."""

    video: str
    label: int
    """Class number, -1 if unknown."""
    status: str
    probabilities: np.ndarray | None = None
    """float32 (K,); None if it could not be decoded."""
    frames: np.ndarray | None = None
    """uint8 RGB (T, SIDE, SIDE, 3): its first view, made smaller."""
    beside: np.ndarray | None = None
    """float32 (K,): probabilities that something beside the network gives."""
    heat: np.ndarray | None = None
    """float32 (T, S, S), 0 to 1: what speaks for the predicted class."""

    @property
    def predicted(self) -> int:
        assert self.probabilities is not None
        return int(self.probabilities.argmax())

    @property
    def kind(self) -> str:
        if self.probabilities is None:
            return self.status
        return RIGHT if self.predicted == self.label else WRONG

    @property
    def surprise(self) -> float:
        """Larger for clips that are more worth a look: confident mistakes first, then right ones that were nearly wrong."""
        if self.probabilities is None:
            return -1.0
        best = float(self.probabilities.max())
        return 1 + best if self.kind == WRONG else 1 - best

    def content(self, labels: tuple[str, ...], strips: Strips, note: str = "") -> dict[str, object]:
        """The clip as the page's script takes it."""
        top = None
        if self.probabilities is not None:
            order = np.argsort(-self.probabilities, kind="stable")[:TOP]
            top = [[labels[number], float(self.probabilities[number])] for number in order]
        return {
            "video": escape_non_utf8(self.video),
            "status": self.status,
            "kind": self.kind,
            "expected": labels[self.label] if self.label >= 0 else None,
            "top": top,
            "note": note,
            "strip": strips.of(self.frames, self.heat) if self.frames is not None else None,
        }


def spread_rows(split: Split, count: int) -> np.ndarray:
    """Rows of at most `count` clips of a split, spread evenly over its classes; always the same ones."""
    order = clip_rng(0, 0, "report").permutation(len(split))
    # The k-th clip of each class before the k+1-th of any.
    turns: dict[int, int] = {}
    turn = np.empty(len(split), np.int64)
    for row in order:
        label = int(split.classes[row])
        turn[row] = turns[label] = turns.get(label, -1) + 1
    return order[np.argsort(turn[order], kind="stable")][:count]


def predict_rows(
    model: ClipModel,
    split: Split,
    rows: np.ndarray,
    *,
    clip: Clip,
    data: Data,
    explain: int = 0,
    beside: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> list[ShownClip]:
    """Predicts clips of a split in fp32.

    Args:
        model: in evaluation mode.
        split: its clips have the model's class numbers.
        rows: of the split.
        clip: how clips are read.
        data: decoder and threads.
        explain: for how many clips, the most surprising first, Grad-CAM is computed.
        beside: gives logits (N, K) of the same clips, uint8 (N, T, S, S, 3), for `ShownClip.beside`.
    """
    device = choose_device()
    model = model.channels_last().to(device).eval()
    loader = ClipLoader(clip=clip, batch=BATCH, data=data, device=device)
    shown: list[ShownClip] = []
    requests = [evaluation_request_of(split, int(row), clip=clip) for row in rows]

    def probabilities_of(logits: torch.Tensor, videos: int) -> np.ndarray:
        found: np.ndarray = mean_over_views(logits.float(), videos, clip.average).softmax(1).cpu().numpy()
        return found

    with torch.inference_mode(), Progress("predicting clips", len(requests), unit="clips") as progress:
        for batch in loader.batches(in_batches(iter(requests), BATCH)):
            if videos := len(batch.requests):
                first = batch.clips[:: batch.requests[0].views].cpu()
                probabilities = probabilities_of(model(batch.clips), videos)
                others = probabilities_of(beside(batch.clips), videos) if beside else [None] * videos
                for request, values, other, frames in zip(batch.requests, probabilities, others, first, strict=True):
                    shown.append(ShownClip(str(request.path), request.label, OK, values, _small(frames), other))
            for bad in batch.bad:
                label = getattr(bad.request, "label", -1)
                shown.append(ShownClip(str(bad.request.path), label, f"error: {bad.reason}"))
            progress.add(len(batch.requests) + len(batch.bad))
    if explain:
        _explain(model, {str(request.path): request for request in requests}, shown, loader, explain)
    return shown


def _explain(
    model: ClipModel, requests: dict[str, ClipRequest], shown: list[ShownClip], loader: ClipLoader, count: int
) -> None:
    chosen = sorted((one for one in shown if one.probabilities is not None), key=lambda one: -one.surprise)[:count]
    by_name = {one.video: one for one in chosen}
    groups = in_batches((requests[one.video] for one in chosen), BATCH)
    with Progress("explaining clips", len(chosen), unit="clips") as progress:
        for batch in loader.batches(groups):
            ones = [by_name[str(request.path)] for request in batch.requests]
            if not ones:
                continue
            clips = batch.clips[:: batch.requests[0].views]
            classes = torch.tensor([one.predicted for one in ones], device=clips.device)
            for one, heat in zip(ones, grad_cam(model, clips, classes), strict=True):
                one.heat = heat.cpu().numpy()
            progress.add(len(ones))


def _small(frames: torch.Tensor) -> np.ndarray:
    """uint8 (T, S, S, 3) to uint8 (T, SIDE, SIDE, 3)."""
    planes = frames.permute(0, 3, 1, 2).float()
    small = torch.nn.functional.interpolate(planes, size=(SIDE, SIDE), mode="area")
    return small.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
