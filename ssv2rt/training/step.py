"""One step of training: a batch's gradient, and, after `accumulate` of them, a change of the weights."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ssv2rt.core.errors import UserError
from ssv2rt.core.hardware import DTYPES, Precision
from ssv2rt.core.recipes import Train
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.training.distributed import Group
from ssv2rt.training.mixup import mix
from ssv2rt.training.optimizer import build_optimizer

_REMEDY = "lower train.learning_rate, lengthen train.warmup_epochs, or set train.clip_norm"


@dataclass
class RunningMetrics:
    """Sums over the clips seen, kept on the device, so that no step waits for them."""

    device: torch.device
    values: torch.Tensor = field(init=False)
    """float64 (2, 3): loss, clips that were right, clips; of the epoch, and since they were last written down."""

    def __post_init__(self) -> None:
        self.values = torch.zeros(2, 3, dtype=torch.float64, device=self.device)

    def add(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Takes the mean loss of a batch and its logits (N, K)."""
        right = (logits.detach().argmax(1) == labels).sum()
        clips = torch.full((), len(labels), dtype=torch.float64, device=self.device)
        self.values += torch.stack([loss.detach().double() * clips, right.double(), clips])

    def since_last(self, group: Group) -> tuple[float, float]:
        """As `read`, of what was added since this was last called."""
        means = _means(*group.sum(*self.values[1].tolist()))
        self.values[1].zero_()
        return means

    def read(self, group: Group | None = None) -> tuple[float, float]:
        """Mean loss and top-1 in percent, of this process or of all in a group. Waits for the device."""
        values = self.values[0].tolist()
        return _means(*(group.sum(*values) if group else values))


def _means(loss: float, right: float, clips: float) -> tuple[float, float]:
    return loss / max(1, clips), 100 * right / max(1, clips)


class TrainingStep:
    """The model with all that changes it.

    Args:
        model: in place on the group's device.
        settings: the recipe's `[train]`.
        precision: of the arithmetic.
        group: the processes that train together.
    """

    def __init__(self, model: ClipModel, settings: Train, precision: Precision, group: Group) -> None:
        self.model, self.settings, self.precision, self.group = model, settings, precision, group
        self.optimizer = build_optimizer(model, settings)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=precision == "fp16")
        self.average = (
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema), use_buffers=True)
            if settings.ema
            else None
        )
        self.metrics = RunningMetrics(group.device)
        self.rate = 0.0
        """The learning rate of the last update."""
        forward: nn.Module = model
        if group.size > 1:
            index = [group.device.index] if group.device.type == "cuda" else None
            forward = nn.parallel.DistributedDataParallel(forward, device_ids=index)
        self._parallel = forward
        self._forward = torch.compile(forward) if settings.compile else forward
        self._doubt: tuple[torch.Tensor, str, str] | None = None  # a figure that may not be finite, and what it is
        self._shape: torch.Size | None = None  # of the clips of the batch before
        self._copied: torch.cuda.Event | None = None  # when it has come over from the GPU

    @property
    def evaluated(self) -> ClipModel:
        """The model that is evaluated and exported: the running average, if there is one."""
        if self.average is None:
            return self.model
        assert isinstance(self.average.module, ClipModel)
        return self.average.module

    def backward(self, clips: torch.Tensor, labels: torch.Tensor, *, epoch: int, step: int, last: bool) -> None:
        """Adds a batch's gradient.

        Args:
            clips: uint8 (N, T, H, W, 3); N = 0 adds nothing, and keeps step with the other processes.
            labels: int64 (N,)
            epoch: its number, from 1.
            step: of the epoch, from 0.
            last: whether the weights are changed next, so that processes share their gradients.

        Raises:
            UserError: the loss of this step, or on a GPU of an earlier one, is not finite.
        """
        settings, weight = self.settings, 1.0 / self.settings.accumulate
        if not len(clips):
            if self.group.size == 1 or self._shape is None:
                return
            clips, labels, weight = clips.new_zeros(2, *self._shape), labels.new_zeros(2), 0.0
        self._shape = clips.shape[1:]
        mixed = mix(clips, labels, settings, epoch=epoch, step=step)
        waiting = self.group.size > 1 and not last
        with self._parallel.no_sync() if waiting else contextlib.nullcontext():  # type: ignore[operator]
            with torch.autocast(self.group.device.type, DTYPES[self.precision], enabled=self.precision != "fp32"):
                logits = self._forward(mixed.clips).float()
                loss = F.cross_entropy(logits, mixed.labels, label_smoothing=settings.label_smoothing)
                if mixed.share < 1:
                    other = F.cross_entropy(logits, mixed.others, label_smoothing=settings.label_smoothing)
                    loss = mixed.share * loss + (1 - mixed.share) * other
            self._check(loss.detach(), "loss", f"epoch {epoch}, step {step}")
            self.scaler.scale(loss * weight).backward()
        if weight:
            self.metrics.add(loss, logits, labels)

    def update(self, rate: float, where: str) -> None:
        """Changes the weights by the gradients added so far.

        Raises:
            UserError: the gradient of this update, or on a GPU of an earlier one, is not finite.
        """
        self.scaler.unscale_(self.optimizer)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(trained, self.settings.clip_norm or math.inf)
        if not self.scaler.is_enabled():  # the scaler skips such updates by itself
            self._check(norm.detach(), "gradient", where)
        self.rate = rate
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self._follow(self.average)

    def _follow(self, average: AveragedModel) -> None:
        """What `AveragedModel.update_parameters` does, which waits for a GPU each time to tell it a number."""
        ours = [*average.module.parameters(), *average.module.buffers()]
        theirs = [*self.model.parameters(), *self.model.buffers()]
        if average.n_averaged == 0:  # a tensor of the CPU
            with torch.no_grad():
                torch._foreach_copy_(ours, theirs)
        else:
            move = get_ema_multi_avg_fn(self.settings.ema)
            pairs = list(zip(ours, theirs, strict=True))
            for floats in (True, False):
                alike = [(a.detach(), b.detach()) for a, b in pairs if a.is_floating_point() == floats]
                if alike:
                    move([a for a, _ in alike], [b for _, b in alike], 0)
        average.n_averaged += 1

    def settle(self) -> None:
        """Waits until all figures are known to be finite; raises as `backward` where one is not."""
        if self._doubt:
            value, what, where = self._doubt
            self._doubt = None
            if self._copied is not None:
                self._copied.synchronize()
            if not math.isfinite(number := value.item()):
                raise UserError(f"{what} is {number} at {where}; stopped, and nothing of it is kept; {_REMEDY}")

    def _check(self, value: torch.Tensor, what: str, where: str) -> None:
        """Looks at a figure; on a GPU at the one before, which is there already, so that no step waits."""
        if self.group.device.type == "cuda":
            self.settle()
            copy = torch.empty((), dtype=value.dtype, pin_memory=True)
            self._doubt = copy.copy_(value, non_blocking=True), what, where
            self._copied = torch.cuda.Event()
            self._copied.record()
            return
        self._doubt = value, what, where
        self.settle()
