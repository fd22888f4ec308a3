"""The training loop."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from typing import Any

import torch

from ssv2rt.core.atomic_files import write_text
from ssv2rt.core.errors import UserError
from ssv2rt.core.hardware import choose_device, choose_precision
from ssv2rt.core.progress import Progress
from ssv2rt.core.recipe_files import dump_recipe
from ssv2rt.core.recipes import Recipe
from ssv2rt.core.run_folders import Run
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.models.clip_model import ClipModel, freeze_backbone
from ssv2rt.models.pretrained import initialize_from
from ssv2rt.models.registry import build_model
from ssv2rt.models.residual import set_checkpointing, set_drop_path
from ssv2rt.pipelines.loader import ClipBatch, ClipLoader, make_trust
from ssv2rt.pipelines.samplers import steps_per_epoch, train_batches
from ssv2rt.training.batch_size import with_batch_size
from ssv2rt.training.checkpoint import load_state, save_checkpoint
from ssv2rt.training.confusion import write_confusion
from ssv2rt.training.decoding import crashes_noted, forget_crashes, read_decoding, use, write_environment
from ssv2rt.training.determinism import plain_errors, set_deterministic
from ssv2rt.training.distributed import Group
from ssv2rt.training.evaluate import Evaluation, evaluate, evaluation_loader
from ssv2rt.training.metrics_log import MetricsLog
from ssv2rt.training.optimizer import learning_rate, scaled_rate
from ssv2rt.training.signals import SignalHandler, Stopped
from ssv2rt.training.step import TrainingStep
from ssv2rt.training.sync_batch_norm import share_batch_norm

logger = logging.getLogger(__name__)


class Trainer:
    """Trains one model.

    Args:
        recipe: every setting.
        manifest: the data; its labels become the classes.
        group: the processes that train together; by default this one, on the first GPU or the CPU.

    Raises:
        UserError: the data is not enough for the recipe, or a setting does not fit the machine.
    """

    def __init__(self, recipe: Recipe, manifest: Manifest, group: Group | None = None) -> None:
        self.group = group = group or Group(0, 1, choose_device())
        self.precision = choose_precision(recipe.train.precision, group.device)
        set_deterministic(recipe.train.deterministic)
        self.recipe = recipe = with_batch_size(recipe, len(manifest.labels), self.precision, group)
        self.manifest, settings = manifest, recipe.train
        self.train = manifest.split("train", recipe.data.max_bad)
        self.validation = manifest.split("validation", recipe.data.max_bad)
        self._check_data(manifest)
        self.steps = steps_per_epoch(
            len(self.train), batch=settings.batch, accumulate=settings.accumulate, shards=group.size
        )
        self.updates_per_epoch = self.steps // settings.accumulate
        if settings.compile:
            _check_compiler(group)
        torch.manual_seed(settings.seed)
        model = _initial_model(recipe, len(manifest.labels), group).channels_last().to(group.device)
        if settings.sync_bn and group.size > 1:
            share_batch_norm(model, group.device)
        self.training_step = TrainingStep(model, settings, self.precision, group)
        torch.manual_seed(settings.seed + group.rank)  # dropout differs from process to process
        self.decoder_trust = make_trust(recipe.data, group.device)
        self.loader = ClipLoader(
            clip=recipe.clip.one_view(),
            batch=settings.batch,
            data=recipe.data,
            device=group.device,
            augment=recipe.augment.has_pixel_augment,
            measured=None if settings.deterministic else self._say,
            decoder_trust=self.decoder_trust,
        )
        self.validation_loader = evaluation_loader(recipe, group.device, self.decoder_trust)
        self._loaders = {"train": self.loader, "validation": self.validation_loader}
        self.epoch = 0
        """How many are complete."""
        self.step = 0
        """How many steps of the next one are."""
        self.update = self.bad = 0
        self.best: Evaluation | None = None
        self._saved = time.monotonic()

    @property
    def model(self) -> torch.nn.Module:
        return self.training_step.model

    def fit(self, run: Run) -> Evaluation:
        """Trains from where the trainer stands to the last epoch, and writes what `run` is to hold.

        Returns:
            The best epoch's evaluation.

        Raises:
            Stopped: by a signal, after saving.
            UserError: a loss or gradient that is not finite; too many bad clips.
        """
        settings = self.recipe.train
        if self.group.first:
            write_text(run.recipe_file, dump_recipe(self.recipe))
            self._write_environment(run)
            self._say(
                f"training {self.recipe.model.name} on {len(self.train)} clips, {self.group.device}, {self.precision}"
            )
            self._metrics_log = MetricsLog(run, epoch=self.epoch, update=self.update, tensorboard=settings.tensorboard)
        self.group.from_first(lambda: forget_crashes(run))
        noted = crashes_noted(run, self.group.rank, self._loaders)
        with SignalHandler() as interruption, plain_errors(self.recipe.model.name), noted:
            self._interruption = interruption
            while self.epoch < settings.epochs:
                self._train_epoch(run)
                evaluation = self._evaluate(run)
                loss, top1 = self.training_step.metrics.read(self.group)
                self.epoch, self.step = self.epoch + 1, 0
                self.training_step.metrics.values.zero_()
                self._say(
                    f"epoch {self.epoch}/{settings.epochs}: loss {loss:.3f}, top-1 {top1:.1f}%; validation loss "
                    f"{evaluation.loss:.3f}, top-1 {evaluation.top1:.1f}%, top-5 {evaluation.top5:.1f}%"
                )
                if best := self.best is None or _ranking(evaluation) > _ranking(self.best):
                    self.best = evaluation
                self._write(
                    epoch=self.epoch,
                    train_loss=loss,
                    train_top1=top1,
                    bad=self.bad,
                    validation=evaluation.as_dict(),
                )
                if best and self.group.first and evaluation.confusion is not None:
                    write_confusion(run.confusion_file, evaluation.confusion, self.train.labels)
                self._save(run, best=best)
        assert self.best is not None
        return self.best

    def resume(self, run: Run) -> None:
        """Takes up a run where its last checkpoint left it, so that the result is that of an uninterrupted run.

        Raises:
            UserError: there is no checkpoint, or it does not fit the recipe, the data or the number of processes.
        """
        state = load_state(run, self.recipe)
        found = self.group.from_first(lambda: read_decoding(run))
        use(found, self.decoder_trust, self._loaders)
        if found.crashed:
            self._say(
                f"the process crashed while DALI decoded {len(found.crashed)} clips, such as '{found.crashed[0]}'; "
                f"PyAV decodes them from now on"
            )
        self.manifest.check_classes(state["labels"], f"run '{run.path}'")
        for name, here in (("clips", len(self.train)), ("processes", self.group.size)):
            if state[name] != here:
                raise UserError(
                    f"run '{run.path}' was trained with {state[name]} {name}, and there are {here} now; "
                    f"continue it with what it began with"
                )
        training_step = self.training_step
        try:
            training_step.model.load_state_dict(state["model"])
            training_step.optimizer.load_state_dict(state["optimiser"])
            if training_step.average is not None:
                training_step.average.load_state_dict(state["average"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"the checkpoint of '{run.path}' does not fit: {str(error).splitlines()[-1].strip()}"
            ) from None
        training_step.scaler.load_state_dict(state["scaler"])
        training_step.metrics.values.copy_(state["tally"][self.group.rank])
        self.epoch, self.step, self.update, self.bad = (state[name] for name in ("epoch", "step", "update", "bad"))
        self.best = Evaluation(**state["best"]) if state["best"] else None
        random = state["random"][self.group.rank]
        torch.set_rng_state(random["cpu"])
        if random["cuda"] is not None:
            torch.cuda.set_rng_state(random["cuda"], self.group.device)

    def _train_epoch(self, run: Run) -> None:
        """The steps of the epoch that are left."""
        settings, epoch = self.recipe.train, self.epoch + 1
        self.training_step.model.train()
        batches = train_batches(self.train, self.recipe, epoch=epoch, shard=self.group.shard, start=self.step)
        waited, began, asked = 0.0, time.perf_counter(), time.perf_counter()
        with Progress(f"epoch {epoch}/{settings.epochs}", self.steps * settings.batch) as progress:
            for batch in self.loader.batches(batches):
                waited += time.perf_counter() - asked
                self._count_bad(batch)
                last = (self.step + 1) % settings.accumulate == 0
                self.training_step.backward(batch.clips, batch.labels, epoch=epoch, step=self.step, last=last)
                self.step += 1
                if last:
                    self._optimizer_step()
                    self._save_now_and_then(run)
                if self.group.first and (progress.due() or self.step == self.steps):
                    loss, top1 = self.training_step.metrics.read()
                    progress.show(
                        self.step * settings.batch,
                        loss=f"{loss:.3f}",
                        top_1=f"{top1:.1f}%",
                        rate=f"{self.training_step.rate:.2g}",
                        waiting=f"{waited / (time.perf_counter() - began):.0%}",
                    )
                asked = time.perf_counter()
        self.training_step.settle()

    def _optimizer_step(self) -> None:
        settings = self.recipe.train
        rate = learning_rate(
            self.update,
            steps=self.updates_per_epoch * settings.epochs,
            warmup=round(self.updates_per_epoch * settings.warmup_epochs),
            peak=scaled_rate(settings, self.group.size),
        )
        self.training_step.update(rate, self._where())
        self.update += 1
        if self.update % settings.log_every == 0:
            loss, top1 = self.training_step.metrics.since_last(self.group)
            self._write(epoch=self.epoch + (self.step / self.steps), loss=loss, top1=top1, learning_rate=rate)

    def _evaluate(self, run: Run) -> Evaluation:
        def stop() -> None:
            if self._stop_requested():
                self._stop(run)

        self.group.share(self.training_step.evaluated.buffers())  # each process has statistics of its own shard
        return evaluate(
            self.training_step.evaluated,
            self.validation,
            self.recipe,
            device=self.group.device,
            precision=self.precision,
            loader=self.validation_loader,
            group=self.group,
            between=stop,
        )

    def _save_now_and_then(self, run: Run) -> None:
        """Saves when told to stop, and then stops; or when it is time to."""
        if self._stop_requested():
            self._stop(run)
        late = time.monotonic() - self._saved > 60 * self.recipe.train.checkpoint_minutes
        if self.group.any(late) if self.group.size > 1 else late:
            self._save(run, best=False)

    def _stop_requested(self) -> bool:
        """Whether a signal has come to any of the processes, which stop together."""
        told = bool(self._interruption.signal)
        return self.group.any(told) if self.group.size > 1 else told

    def _stop(self, run: Run) -> None:
        import signal

        self._save(run, best=False)
        number = self._interruption.signal or signal.SIGTERM
        raise Stopped(
            f"stopped by {signal.Signals(number).name} after {self._where()}; "
            f"go on with `ssv2rt train --resume {run.name}`",
            number,
        )

    def _count_bad(self, batch: ClipBatch) -> None:
        for clip in batch.bad:
            self.bad += 1
            logger.warning(f"skipped {clip.request.path}: {clip.reason}")
        allowed = max(1, self.recipe.data.max_bad * len(self.train))
        if self.bad > allowed * (self.epoch + 1):
            raise UserError(
                f"{self.bad} clips could not be decoded by {self._where()}, more than data.max_bad = "
                f"{self.recipe.data.max_bad:g} allows; look at the videos with `ssv2rt index --decode`, or raise it"
            )

    def _write_environment(self, run: Run) -> None:
        write_environment(run, self.group.device, self.decoder_trust, sorted(self.loader.avoid))

    def _where(self) -> str:
        return f"epoch {self.epoch + 1}, step {self.step}"

    def _say(self, text: str) -> None:
        if self.group.first:
            logger.info(text)

    def _write(self, *, epoch: float, **facts: object) -> None:
        if self.group.first:
            self._metrics_log.write(epoch=epoch, update=self.update, **facts)

    def _save(self, run: Run, *, best: bool) -> None:
        """Writes a checkpoint. Every process has its part in it, and the first one writes."""
        self.training_step.settle()
        training_step = self.training_step
        mine = {
            "random": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(self.group.device) if self.group.device.type == "cuda" else None,
            },
            "tally": training_step.metrics.values.cpu(),
        }
        parts = self.group.gather(mine)
        self._saved = time.monotonic()
        if not self.group.first:
            return
        state: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.step,
            "update": self.update,
            "bad": self.bad,
            "best": self.best.as_dict() if self.best else None,
            "labels": list(self.train.labels),
            "clips": len(self.train),
            "processes": self.group.size,
            "model": training_step.model.state_dict(),
            "average": training_step.average.state_dict() if training_step.average is not None else None,
            "optimiser": training_step.optimizer.state_dict(),
            "scaler": training_step.scaler.state_dict(),
            "random": [part["random"] for part in parts],
            "tally": [part["tally"] for part in parts],
        }
        save_checkpoint(
            run, training_step.evaluated, state, labels=self.train.labels, recipe=self.recipe, best=best, step=self.step
        )
        self._write_environment(run)
        run.make_latest()

    def _check_data(self, manifest: Manifest) -> None:
        settings = self.recipe.train
        if len(manifest.labels) < 2:
            raise UserError(
                f"the data has {len(manifest.labels)} class, and there is nothing to tell apart; it needs two"
            )
        for split in (self.train, self.validation):
            if (split.classes < 0).any():
                raise UserError(
                    f"clips in '{split.folder}' have no label; training and validation need a label for each"
                )
        if len(self.train) < settings.batch * settings.accumulate * self.group.size:
            processes = f" x {self.group.size} processes" if self.group.size > 1 else ""
            raise UserError(
                f"{len(self.train)} training clips do not fill one update of {settings.batch} x "
                f"{settings.accumulate} clips{processes} (train.batch_size x train.accumulate); lower one of them"
            )


def _initial_model(recipe: Recipe, classes: int, group: Group) -> ClipModel:
    """The network as training begins, with fresh weights or with those that the recipe names."""
    model = build_model(recipe.model, classes)
    if recipe.model.init:
        report = group.from_first(lambda: initialize_from(model, recipe.model.init, how=recipe.model.inflate))
        if group.first:
            logger.info(str(report))
        else:
            initialize_from(model, recipe.model.init, how=recipe.model.inflate)
    if recipe.model.drop_path:
        set_drop_path(model, recipe.model.drop_path)
    if recipe.model.checkpointing:
        set_checkpointing(model, True)
    if recipe.train.freeze_backbone:
        freeze_backbone(model)
    return model


def _ranking(evaluation: Evaluation) -> tuple[float, float]:
    """What makes one epoch better than another: top-1, then the loss."""
    return evaluation.top1, -evaluation.loss if math.isfinite(evaluation.loss) else -math.inf


def _check_compiler(group: Group) -> None:
    """On a CPU torch.compile writes C++."""
    compiler = os.environ.get("CXX", "g++")
    if group.device.type == "cpu" and not (shutil.which(compiler) or shutil.which("clang++")):
        raise UserError(
            f"train.compile = true needs a C++ compiler on a CPU, and '{compiler}' is not installed; "
            f"install g++, or leave it out"
        )
