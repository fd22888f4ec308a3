"""Forward and backward passes of one batch, and the optimizer step after `accumulate` batches."""

from __future__ import annotations

import contextlib
import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ssv2rt.core.errors import UserError
from ssv2rt.core.hardware import DTYPES, Precision
from ssv2rt.core.train_settings import Train
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.residual import running_statistics_frozen
from ssv2rt.training.distributed import Group
from ssv2rt.training.mixup import mix
from ssv2rt.training.optimizer import build_optimizer

_REMEDY = "lower train.learning_rate, lengthen train.warmup_epochs, or set train.clip_norm"


@dataclass
class RunningMetrics:
    """Loss and top-1 sums that stay on the device, so that no step waits for a GPU synchronization."""

    device: torch.device
    values: torch.Tensor = field(init=False)
    """float64 (2, 3). Columns: summed loss, correct clips, clips. Row 0: this epoch. Row 1: since `read_since_last`."""

    def __post_init__(self) -> None:
        self.values = torch.zeros(2, 3, dtype=torch.float64, device=self.device)

    def add(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Adds a batch.

        Args:
            loss: mean loss of the batch, a scalar.
            logits: (N, K)
            labels: int64 (N,)
        """
        correct = (logits.detach().argmax(1) == labels).sum()
        clips = torch.full((), len(labels), dtype=torch.float64, device=self.device)
        self.values += torch.stack([loss.detach().double() * clips, correct.double(), clips])

    def read_since_last(self, group: Group) -> tuple[float, float]:
        """Like `read`, but only for the batches added since the last call of this method."""
        means = _means(*group.sum(*self.values[1].tolist()))
        self.values[1].zero_()
        return means

    def read(self, group: Group | None = None) -> tuple[float, float]:
        """Mean loss and top-1 in percent of this process, or of all processes of a group. Synchronizes with the GPU."""
        values = self.values[0].tolist()
        return _means(*(group.sum(*values) if group else values))


def _means(loss: float, correct: float, clips: float) -> tuple[float, float]:
    return loss / max(1, clips), 100 * correct / max(1, clips)


class TrainingStep:
    """A model with its optimizer, gradient scaler, EMA weights and running metrics.

    Args:
        model: must already be on the device of the group.
        settings: the recipe's `[train]`.
        precision: of the forward pass, by autocast; fp16 also turns on the gradient scaler.
        group: this process's place among the processes that train together.
        class_weights: float32 (K,), weights of the classes in the loss; None for equal weights. See `class_weights`.
    """

    def __init__(
        self,
        model: ClipModel,
        settings: Train,
        precision: Precision,
        group: Group,
        class_weights: torch.Tensor | None = None,
    ) -> None:
        self.model, self.settings, self.precision, self.group = model, settings, precision, group
        self._class_weights = None if class_weights is None else class_weights.to(group.device)
        self.optimizer = build_optimizer(model, settings)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=precision == "fp16")
        self.ema_model = (
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema), use_buffers=True)
            if settings.ema
            else None
        )
        self.metrics = RunningMetrics(group.device)
        self.learning_rate = 0.0
        """Of the last optimizer step."""
        forward: nn.Module = model
        if group.size > 1:
            # The strides of 1x1x1 weights are ambiguous in channels-last. DDP copies their gradients, and says so.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            index = [group.device.index] if group.device.type == "cuda" else None
            forward = nn.parallel.DistributedDataParallel(forward, device_ids=index)
        self._parallel = forward
        self._forward = torch.compile(forward) if settings.compile else forward
        self._pending_check: tuple[torch.Tensor, str, str] | None = None  # value, name, position
        self._copy_done: torch.cuda.Event | None = None  # the value has reached the CPU

    @property
    def eval_model(self) -> ClipModel:
        """The model to evaluate and export: the EMA weights if `train.ema` is set, else the trained weights."""
        if self.ema_model is None:
            return self.model
        assert isinstance(self.ema_model.module, ClipModel)
        return self.ema_model.module

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Loads the optimizer's state. Its settings stay those of the recipe, but the learning rate is that of the last step.

        Raises:
            Exception: the state does not fit the model.
        """
        own = ("params", "lr")
        settings = [{k: v for k, v in group.items() if k not in own} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state)
        for group, kept in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(kept)
        for parameter, buffers in self.optimizer.state.items():
            for name, buffer in buffers.items():
                if isinstance(buffer, torch.Tensor) and name != "step" and buffer.shape != parameter.shape:
                    raise ValueError(f"the optimizer's {name} has the shape {list(buffer.shape)}")

    def backward(self, clips: torch.Tensor, labels: torch.Tensor, *, epoch: int, step: int, last: bool) -> None:
        """Runs forward and backward on a batch, which adds to the accumulated gradients.

        Args:
            clips: uint8 (N, T, H, W, 3). With N = 0 nothing changes, but DDP still runs its collective operations.
            labels: int64 (N,)
            epoch: number of the epoch, from 1.
            step: number of the batch in the epoch, from 0.
            last: whether an optimizer step follows, for which DDP all-reduces the gradients.

        Raises:
            UserError: the loss is not finite. On a GPU, a later call may raise it (see `_check_finite`).
        """
        settings, weight = self.settings, 1.0 / self.settings.accumulate
        unchanged: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if not len(clips):
            if self.group.size == 1:
                return
            # A dummy batch with weight 0: DDP needs a forward and backward pass on every rank.
            clips, labels, weight = clips.new_zeros(2, *clips.shape[1:]), labels.new_zeros(2), 0.0
            unchanged = running_statistics_frozen(self.model)
        mixed = mix(clips, labels, settings, epoch=epoch, step=step)
        accumulating = self.group.size > 1 and not last
        with unchanged, self._parallel.no_sync() if accumulating else contextlib.nullcontext():  # type: ignore[operator]
            with torch.autocast(self.group.device.type, DTYPES[self.precision], enabled=self.precision != "fp32"):
                logits = self._forward(mixed.clips).float()
                loss = self._loss(logits, mixed.labels)
                if mixed.own_weight < 1:
                    other = self._loss(logits, mixed.other_labels)
                    loss = mixed.own_weight * loss + (1 - mixed.own_weight) * other
            self._check_finite(loss.detach(), "loss", f"epoch {epoch}, step {step}")
            self.scaler.scale(loss * weight).backward()
        if weight:
            self.metrics.add(loss, logits, labels)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of a batch. With class weights, their mean is 1 over the training clips, not over the batch."""
        smoothing = self.settings.label_smoothing
        if self._class_weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        losses = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        return (losses * self._class_weights[labels]).mean()

    def optimizer_step(self, learning_rate: float, where: str) -> None:
        """Clips the accumulated gradients, steps the optimizer and updates the EMA weights. Without gradients, does nothing.

        Args:
            learning_rate: for this step.
            where: position in the run, for error messages.

        Raises:
            UserError: the gradient norm is not finite. On a GPU, a later call may raise it.
        """
        trained = [p for p in self.model.parameters() if p.requires_grad]
        if all(p.grad is None for p in trained):  # no clip of this step could be decoded
            return
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(trained, self.settings.clip_norm or math.inf)
        if not self.scaler.is_enabled():  # the gradient scaler skips a step with infinite gradients
            self._check_finite(norm.detach(), "gradient", where)
        self.learning_rate = learning_rate
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = learning_rate * parameters.get("rate_factor", 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema_model is not None:
            self._update_ema(self.ema_model)

    def _update_ema(self, ema_model: AveragedModel) -> None:
        """Like `AveragedModel.update_parameters`, which would synchronize with the GPU to read `n_averaged`."""
        averages = [*ema_model.module.parameters(), *ema_model.module.buffers()]
        values = [*self.model.parameters(), *self.model.buffers()]
        if ema_model.n_averaged == 0:  # this tensor is on the CPU, so there is nothing to wait for
            with torch.no_grad():
                torch._foreach_copy_(averages, values)
        else:
            update_averages = get_ema_multi_avg_fn(self.settings.ema)
            pairs = list(zip(averages, values, strict=True))
            for floating in (True, False):  # the function treats floats and integers differently
                same_kind = [(a.detach(), b.detach()) for a, b in pairs if a.is_floating_point() == floating]
                if same_kind:
                    update_averages([a for a, _ in same_kind], [b for _, b in same_kind], 0)
        ema_model.n_averaged += 1

    def check_pending(self) -> None:
        """Waits for the pending loss or gradient norm and checks it.

        Raises:
            UserError: it is not finite.
        """
        if self._pending_check:
            value, what, where = self._pending_check
            self._pending_check = None
            if self._copy_done is not None:
                self._copy_done.synchronize()
            if not math.isfinite(number := value.item()):
                raise UserError(f"{what} is {number} at {where}; training stopped without saving this step; {_REMEDY}")

    def _check_finite(self, value: torch.Tensor, what: str, where: str) -> None:
        """Checks a loss or gradient norm for NaN and infinity.

        On a GPU, the value is copied to the CPU asynchronously and checked at the next call, so that no step waits for it.
        """
        if self.group.device.type == "cuda":
            self.check_pending()
            copy = torch.empty((), dtype=value.dtype, pin_memory=True)
            self._pending_check = copy.copy_(value, non_blocking=True), what, where
            self._copy_done = torch.cuda.Event()
            self._copy_done.record()
            return
        self._pending_check = value, what, where
        self.check_pending()
