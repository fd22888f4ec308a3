"""The settings of a recipe's `[train]` section, each with its type, range, default and meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from ssv2rt.core.errors import UsageError
from ssv2rt.core.sections import Section

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(ge=1)]


def _number_or_auto(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError("must be greater than or equal to 1, or 'auto'")


class Train(Section):
    """The optimization."""

    epochs: Positive = 50
    """Number of passes over the training split."""
    batch_size: Annotated[int | Literal["auto"], BeforeValidator(_number_or_auto)] = 8
    """Number of clips in a batch on each device. auto: the largest divisor of `update_clips` that fits into memory, tried on a
    GPU, estimated on a CPU and there at most 32. The number found, and the `accumulate` for it, go into the run's recipe."""
    update_clips: Positive = 64
    """With `batch_size = "auto"`: clips per optimizer step and device, to which `learning_rate` applies."""
    accumulate: Positive = 1
    """Number of batches whose gradients are accumulated for one optimizer step."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the forward and backward pass (AMP); weights are fp32. auto: bf16 where the hardware supports it, otherwise
    fp16 on a GPU and fp32 on a CPU."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimizer: SGD with Nesterov momentum, or AdamW."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Peak learning rate, reached after the warm-up, for batch_size * accumulate clips. A cosine schedule takes it to 0."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD: momentum. AdamW does not use it."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Weight decay. Biases and normalization layers have none."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    """Length in epochs of the linear warm-up of the learning rate, at most `epochs`."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability mass that the training target spreads evenly over all classes. 0: none."""
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Maximum L2 norm of the gradient; larger ones are scaled down. 0: no gradient clipping."""
    scale_rate: Literal["linear", "sqrt", "none"] = "linear"
    """How `learning_rate` is scaled by the number of processes, since the global batch grows with it (linear: Goyal et al.
    2017)."""
    sync_bn: bool = False
    """Synchronized batch norm: statistics over the batches of all processes."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per optimizer step of the exponential moving average of the weights. The averaged weights are evaluated and
    exported. 0: none."""
    mixup: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Alpha of mixup (Zhang et al. 2018): pairs of clips are blended with a weight from Beta(alpha, alpha). 0: no mixup."""
    cutmix: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Alpha of CutMix (Yun et al. 2019): a rectangle of another clip is pasted, whose area is drawn from Beta(alpha, alpha).
    With `mixup` too, each batch gets one of the two at random. 0: no CutMix."""
    freeze_backbone: bool = False
    """Train only the classifier."""
    log_every: Positive = 20
    """Number of optimizer steps between two lines of metrics.jsonl. The end of each epoch has a line, too."""
    tensorboard: bool = False
    """Also write TensorBoard logs into the run's folder."""
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 15.0
    """Longest time in minutes between two checkpoints. The end of each epoch has a checkpoint, too."""
    compile: bool = False
    """Compile the network with torch.compile."""
    deterministic: bool = False
    """Use only deterministic algorithms, which are slower on a GPU, so that results repeat to the last bit."""
    seed: Seed = 0
    """Seed of the initial weights, the order of clips, augmentation and dropout."""

    @property
    def batch(self) -> int:
        """`batch_size` as a number.

        Raises:
            UsageError: it is "auto", and no number was found yet.
        """
        if self.batch_size == "auto":
            raise UsageError("train.batch_size = 'auto': only `ssv2rt train` finds a number for it; give one here")
        return self.batch_size

    @model_validator(mode="after")
    def _check(self) -> Train:
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs = {self.warmup_epochs:g} is longer than the run of {self.epochs} epochs; shorten it"
            )
        return self
