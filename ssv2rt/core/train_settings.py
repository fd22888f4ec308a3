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
    fit_to_data: bool = False
    """Choose the clips of an optimizer step, `learning_rate`, `epochs` and `warmup_epochs` for the training split if that is
    small: fewer than four full optimizer steps an epoch, or fewer than `min_steps` in the run. Settings given by --set stay.
    What is chosen goes into the run's recipe, where this is false. Larger sets are trained with the recipe as it is."""
    min_steps: Positive = 400
    """With `fit_to_data`: least number of optimizer steps of a run, which small sets reach by more epochs."""
    accumulate: Positive = 1
    """Number of batches whose gradients are accumulated for one optimizer step."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the forward and backward pass (AMP); weights are fp32. auto: bf16 where the hardware supports it, otherwise
    fp16 on a GPU and fp32 on a CPU."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimizer: SGD with Nesterov momentum, or AdamW."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Peak learning rate, reached after the warm-up, for batch_size * accumulate clips. `schedule` lowers it from there."""
    head_rate: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Factor of the learning rate for the classifier. 10 is usual where only the classifier starts fresh."""
    schedule: Literal["cosine", "steps"] = "cosine"
    """How the learning rate falls after the warm-up. cosine: to 0 at the end (Loshchilov and Hutter 2017). steps: by the
    factor `step_factor` at each of `step_epochs`, as MMAction2's MultiStepLR and PySlowFast's steps_with_relative_lrs."""
    step_epochs: tuple[Positive, ...] = ()
    """With `schedule = "steps"`: numbers of complete epochs after which the learning rate falls, rising and below `epochs`."""
    step_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """With `schedule = "steps"`: what the learning rate is multiplied by each time."""
    continued: tuple[Positive, ...] = ()
    """Numbers of complete epochs after which `--resume RUN --epochs N` continued the run. From each on, a cosine takes the
    learning rate from a tenth of its peak to 0, at the next of them or at the end. Empty: the run was never continued."""
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
    2017), and by `fit_to_data`."""
    sync_bn: bool = False
    """Synchronized batch norm: statistics over the batches of all processes."""
    precise_bn: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Number of training batches whose mean and variance replace the running statistics of batch norm before each evaluation
    (Wu and Johnson 2021). 0: the running statistics are used."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per optimizer step of the exponential moving average of the weights. The averaged weights are evaluated and
    exported. 0: none."""
    mixup: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Alpha of mixup (Zhang et al. 2018): pairs of clips are blended with a weight from Beta(alpha, alpha). 0: no mixup."""
    cutmix: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Alpha of CutMix (Yun et al. 2019): a rectangle of another clip is pasted, whose area is drawn from Beta(alpha, alpha).
    With `mixup` too, each batch gets one of the two at random. 0: no CutMix."""
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    """Which clips an epoch has. shuffle: each clip once. balanced: as many clips, and equally many of each class: clips of
    small classes are repeated, each time with another augmentation, and those of large classes take turns over the epochs."""
    class_weights: Literal["none", "sqrt", "inverse"] = "none"
    """Weights of the classes in the training loss. inverse: inversely proportional to the number of training clips of a class.
    sqrt: to its square root. The mean weight of a clip is 1. Not together with `sampler = "balanced"`."""
    best_by: Literal["top1", "mean-class", "auto"] = "top1"
    """Which validation accuracy the best checkpoint is chosen by; equal ones are told apart by the loss. mean-class: the mean
    of the accuracies of the classes. auto: mean-class if the largest class has over 3 times the training clips of the
    smallest, otherwise top1."""
    freeze_backbone: bool = False
    """Train only the classifier."""
    log_every: Positive = 20
    """Number of optimizer steps between two lines of metrics.jsonl. The end of each epoch has a line, too."""
    tensorboard: bool = False
    """Also write TensorBoard logs into the run's folder."""
    tracker: str = ""
    """Experiment tracker that gets every line of metrics.jsonl: tensorboard, wandb, or a function of your own as
    `module:function` (see `ssv2rt/training/trackers.py`). Empty: none."""
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
                f"warmup_epochs = {self.warmup_epochs:g} is longer than the run of {self.epochs} epochs; shorten it, or set "
                f"the epochs by --epochs, which does"
            )
        for name in ("step_epochs", "continued"):
            numbers = getattr(self, name)
            if list(numbers) != sorted(set(numbers)) or (numbers and numbers[-1] >= self.epochs):
                raise ValueError(
                    f"{name} = {list(numbers)}: they must rise, and be below epochs = {self.epochs}"
                    f"{'; --epochs scales them, too' if name == 'step_epochs' else ''}"
                )
        if (self.schedule == "steps") != bool(self.step_epochs):
            raise ValueError(
                f"schedule = '{self.schedule}' and step_epochs = {list(self.step_epochs)}: set epochs with 'steps', and "
                f"step_epochs=[] with another schedule"
            )
        if self.precise_bn and self.freeze_backbone:
            raise ValueError(
                f"precise_bn = {self.precise_bn} and freeze_backbone = true: a frozen backbone keeps its statistics; "
                f"leave one of them out"
            )
        if self.sampler == "balanced" and self.class_weights != "none":
            raise ValueError(
                f"sampler = 'balanced' and class_weights = '{self.class_weights}' would balance the classes twice; "
                f"take one of them"
            )
        return self
