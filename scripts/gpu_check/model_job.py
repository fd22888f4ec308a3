"""One network, measured in one way after another on clips that lie ready. Letters: N clips, T frames, S size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gpu_check import measure
from gpu_check.record import Record
from ssv2rt.core.hardware import DTYPES, Precision, native_bf16
from ssv2rt.core.recipes import Model, Train
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.registry import build_model
from ssv2rt.training.distributed import Group
from ssv2rt.training.step import TrainingStep

CLASSES = 174


@dataclass(frozen=True)
class Mode:
    """How a network is computed."""

    precision: Precision
    channels_last: bool
    tf32: bool = True
    """In fp32: whether convolutions may round to TF32, as PyTorch lets them."""
    compiled: bool = False

    def __str__(self) -> str:
        kind = {"fp32": "TF32" if self.tf32 else "fp32"}.get(self.precision, self.precision)
        return f"{kind}, {'channels-last-3d' if self.channels_last else 'contiguous'}" + ", compiled" * self.compiled


@dataclass(frozen=True)
class Found:
    """What one measurement gave; `rate` is 0 if the batch did not fit."""

    rate: float
    """Clips per second."""
    batch: int
    megabytes: float | None = None
    reason: str = ""


class Job:
    """One network on clips of one size.

    Args:
        record: takes a row for each measurement.
        name: of the network.
        size: S.
    """

    def __init__(self, record: Record, name: str, size: int) -> None:
        self.record, self.where = record, measure.device()
        settings = Model(name=name, width=8 if record.tiny else 64)
        self._shape = (4, 32, 32, 3) if record.tiny else (16, size, size, 3)
        torch.manual_seed(0)
        self._model = build_model(settings, CLASSES)
        self.title = f"{name}, {self._shape[0]} x {self._shape[1]} x {self._shape[2]}"
        self._flops = self._count(settings)
        self._peak = _peak(record, self.where)

    def measured(self, mode: Mode, task: str, batch: int, *, seconds: float) -> Found:
        """Measures a batch, if it fits."""
        where, found = self.where, [0.0, 0.0]
        measure.free()
        measure.forget_peak(where)

        def work() -> None:
            step = self._step(mode, task, batch)
            found[0] = batch / measure.spent(step, where, seconds=seconds).median

        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = mode.tf32
        try:
            reason = measure.too_large(work)
        finally:
            torch.backends.cudnn.allow_tf32 = before
        rate, megabytes = found[0], measure.peak_megabytes(where)
        flops = rate * self._flops[task]
        self.record.row(
            task,
            network=self.title,
            mode=str(mode),
            batch=batch,
            clips_per_second=rate or None,
            tflops=flops / 1e12 or None,
            of_the_bf16_product=flops / self._peak or None,
            memory_megabytes=megabytes if rate else None,
            megabytes_a_clip=megabytes / batch if rate and megabytes else None,
            refused=reason,
        )
        return Found(rate, batch, megabytes, reason)

    def _step(self, mode: Mode, task: str, batch: int) -> Callable[[], None]:
        where = self.where
        model = copy.deepcopy(self._model)
        if mode.channels_last:
            model.channels_last()
        else:
            model.normalise = _Contiguous(model.normalise)  # type: ignore[assignment]
        model.to(where)
        generator = torch.Generator(where).manual_seed(batch)
        clips = torch.randint(0, 256, (batch, *self._shape), dtype=torch.uint8, device=where, generator=generator)
        if task == "forward":
            return self._forward(model.eval(), mode, clips)
        labels = torch.randint(0, CLASSES, (batch,), device=where, generator=generator)
        training_step = TrainingStep(model.train(), Train(compile=mode.compiled), mode.precision, Group(0, 1, where))

        def step() -> None:
            training_step.backward(clips, labels, epoch=1, step=0, last=True)
            training_step.update(1e-6, "the check")

        return step

    def _forward(self, model: ClipModel, mode: Mode, clips: torch.Tensor) -> Callable[[], None]:
        network = torch.compile(model, dynamic=False) if mode.compiled else model

        def step() -> None:
            with (
                torch.inference_mode(),
                torch.autocast(self.where.type, DTYPES[mode.precision], enabled=mode.precision != "fp32"),
            ):
                network(clips)

        return step

    def _count(self, settings: Model) -> dict[str, float]:
        """FLOP of a clip, on tensors without memory."""
        with torch.device("meta"):
            model = build_model(settings, CLASSES)
            clip = torch.empty(1, *self._shape, dtype=torch.uint8)
        with FlopCounterMode(display=False) as forward:
            model(clip)
        with FlopCounterMode(display=False) as both:
            model(clip).sum().backward()
        found = {"forward": float(forward.get_total_flops()), "training": float(both.get_total_flops())}
        self.record.row("arithmetic", network=self.title, **{f"gflop_{task}": f / 1e9 for task, f in found.items()})
        return found


class _Contiguous(nn.Module):
    """Normalises into the layout (N, 3, T, S, S), as if clips had come as floats."""

    def __init__(self, normalise: nn.Module) -> None:
        super().__init__()
        self._normalise = normalise

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        pixels: torch.Tensor = self._normalise(clips)
        return pixels.contiguous()


_PEAKS: dict[str, float] = {}


def _peak(record: Record, where: torch.device) -> float:
    """FLOP/s of a bf16 matrix product, or of fp16 where there is no bf16; measured once in this process."""
    kind = torch.bfloat16 if native_bf16(where) or where.type == "cpu" else torch.float16
    if where.type not in _PEAKS:
        size = 8192 if where.type == "cuda" else 512
        _PEAKS[where.type] = measure.product_rate(kind, where, size=size, seconds=record.moment(0.5))
        record.fact(f"matrix product in {str(kind).removeprefix('torch.')}, TFLOP/s", _PEAKS[where.type] / 1e12)
    return _PEAKS[where.type]
