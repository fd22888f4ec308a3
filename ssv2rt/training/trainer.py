"""The training loop: load, step, validate and save, with resume and several processes."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Sequence
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
from ssv2rt.models.pretrained import LoadReport, initialize_from
from ssv2rt.models.registry import build_model
from ssv2rt.models.residual import set_checkpointing, set_drop_path
from ssv2rt.pipelines.decoder_choice import make_trust
from ssv2rt.pipelines.loader import ClipBatch, ClipLoader
from ssv2rt.pipelines.samplers import steps_per_epoch, train_batches
from ssv2rt.training.batch_size import resolve_batch_size
from ssv2rt.training.checkpoint import load_state, save_checkpoint
from ssv2rt.training.confusion import write_confusion
from ssv2rt.training.decoding import (
    apply_decoding_record,
    clear_crash_records,
    read_decoding_record,
    recording_crashes,
    write_environment,
)
from ssv2rt.training.determinism import explain_determinism_errors, set_deterministic
from ssv2rt.training.distributed import Group
from ssv2rt.training.evaluate import Evaluation, evaluate, evaluation_loader
from ssv2rt.training.metrics_log import MetricsLog
from ssv2rt.training.optimizer import learning_rate, scaled_learning_rate
from ssv2rt.training.signals import SignalHandler, Stopped
from ssv2rt.training.step import TrainingStep
from ssv2rt.training.sync_batch_norm import convert_sync_batch_norm

logger = logging.getLogger(__name__)


class Trainer:
    """Trains one model.

    Args:
        recipe: all settings of the run.
        manifest: the data set; its labels become the classes.
        group: this process's place among the processes that train together; by default a single process on the first GPU,
            or on the CPU.

    Raises:
        UserError: the data set is too small for the recipe, or this machine cannot run a setting.
    """

    def __init__(self, recipe: Recipe, manifest: Manifest, group: Group | None = None) -> None:
        self.group = group = group or Group(0, 1, choose_device())
        self.precision = choose_precision(recipe.train.precision, group.device)
        set_deterministic(recipe.train.deterministic)
        self.recipe = recipe = resolve_batch_size(recipe, len(manifest.labels), self.precision, group)
        self.manifest, settings = manifest, recipe.train
        self.train_split = manifest.split("train", recipe.data.max_bad)
        self.validation_split = manifest.split("validation", recipe.data.max_bad)
        self._check_data(manifest)
        self.steps_per_epoch = steps_per_epoch(
            len(self.train_split), batch=settings.batch, accumulate=settings.accumulate, shards=group.size
        )
        self.optimizer_steps_per_epoch = self.steps_per_epoch // settings.accumulate
        if settings.compile:
            _check_compiler(group)
        torch.manual_seed(settings.seed)
        model = _build_initial_model(recipe, manifest.labels, group).channels_last().to(group.device)
        if settings.sync_bn and group.size > 1:
            convert_sync_batch_norm(model, group.device)
        self.training_step = TrainingStep(model, settings, self.precision, group)
        torch.manual_seed(settings.seed + group.rank)  # so that each process draws its own dropout masks
        self.decoder_trust = make_trust(recipe.data, group.device)
        self.loader = ClipLoader(
            clip=recipe.clip.one_view(),
            batch=settings.batch,
            data=recipe.data,
            device=group.device,
            augment=recipe.augment.has_pixel_augment,
            measured=None if settings.deterministic else self._log,
            decoder_trust=self.decoder_trust,
        )
        self.validation_loader = evaluation_loader(recipe, group.device, self.decoder_trust)
        self._loaders = {"train": self.loader, "validation": self.validation_loader}
        self.epoch = 0
        """Number of complete epochs."""
        self.step = 0
        """Number of batches done in the current epoch."""
        self.optimizer_steps = 0
        """Number of optimizer steps in the whole run. Called "update" in metrics.jsonl and checkpoints."""
        self.bad = 0
        """Number of training clips that could not be decoded."""
        self.best: Evaluation | None = None
        self._last_save = time.monotonic()

    @property
    def model(self) -> torch.nn.Module:
        return self.training_step.model

    def fit(self, run: Run) -> Evaluation:
        """Trains to the last epoch, from the start or from where `resume` left off. All files are written to `run`.

        Returns:
            The evaluation of the best epoch.

        Raises:
            Stopped: a signal came; a checkpoint has been saved.
            UserError: a loss or gradient is not finite, or too many clips could not be decoded.
        """
        self._start(run)
        with (
            SignalHandler() as self._signals,
            explain_determinism_errors(self.recipe.model.name),
            recording_crashes(run, self.group.rank, self._loaders),
        ):
            while self.epoch < self.recipe.train.epochs:
                self._train_epoch(run)
                evaluation = self._evaluate(run)
                self._finish_epoch(run, evaluation)
        assert self.best is not None
        return self.best

    def _start(self, run: Run) -> None:
        """Writes the files that a run has from the beginning."""
        if self.group.is_rank_zero:
            write_text(run.recipe_file, dump_recipe(self.recipe))
            self._write_environment(run)
            self._log(
                f"training {self.recipe.model.name} on {len(self.train_split)} clips, {self.group.device}, {self.precision}"
            )
            self._metrics_log = MetricsLog(
                run, epoch=self.epoch, update=self.optimizer_steps, tensorboard=self.recipe.train.tensorboard
            )
        self.group.from_rank_zero(lambda: clear_crash_records(run))

    def _finish_epoch(self, run: Run, evaluation: Evaluation) -> None:
        """Logs the epoch, remembers it if it is the best so far, and saves a checkpoint."""
        loss, top1 = self.training_step.metrics.read(self.group)
        self.epoch, self.step = self.epoch + 1, 0
        self.training_step.metrics.values.zero_()
        self._log(
            f"epoch {self.epoch}/{self.recipe.train.epochs}: loss {loss:.3f}, top-1 {top1:.1f}%; validation loss "
            f"{evaluation.loss:.3f}, top-1 {evaluation.top1:.1f}%, top-5 {evaluation.top5:.1f}%"
        )
        if best := self.best is None or _quality(evaluation) > _quality(self.best):
            self.best = evaluation
        self._log_metrics(
            epoch=self.epoch,
            train_loss=loss,
            train_top1=top1,
            bad=self.bad,
            validation=evaluation.as_dict(),
        )
        if best and self.group.is_rank_zero and evaluation.confusion is not None:
            write_confusion(run.confusion_file, evaluation.confusion, self.train_split.labels)
        self._save(run, best=best)

    def resume(self, run: Run) -> None:
        """Restores the last checkpoint of a run, so that training continues as if it had not been interrupted.

        Raises:
            UserError: there is no checkpoint, or it does not match the recipe, the data set or the world size.
        """
        state = load_state(run, self.recipe)
        record = self.group.from_rank_zero(lambda: read_decoding_record(run))
        apply_decoding_record(record, self.decoder_trust, self._loaders)
        if record.crashed:
            self._log(
                f"the process crashed while DALI decoded {len(record.crashed)} clips, such as '{record.crashed[0]}'; "
                f"from now on, PyAV decodes these clips"
            )
        self.manifest.check_classes(state["labels"], f"run '{run.path}'")
        for name, current in (("clips", len(self.train_split)), ("processes", self.group.size)):
            if state[name] != current:
                raise UserError(
                    f"run '{run.path}' was trained with {state[name]} {name}, and there are {current} now; "
                    f"resume it with the same number"
                )
        training_step = self.training_step
        try:
            training_step.model.load_state_dict(state["model"])
            training_step.optimizer.load_state_dict(state["optimiser"])
            if training_step.ema_model is not None:
                training_step.ema_model.load_state_dict(state["average"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"the checkpoint of '{run.path}' does not fit the model: {str(error).splitlines()[-1].strip()}"
            ) from None
        training_step.scaler.load_state_dict(state["scaler"])
        training_step.metrics.values.copy_(state["tally"][self.group.rank])
        self.epoch, self.step, self.optimizer_steps, self.bad = (
            state[name] for name in ("epoch", "step", "update", "bad")
        )
        self.best = Evaluation(**state["best"]) if state["best"] else None
        random = state["random"][self.group.rank]
        torch.set_rng_state(random["cpu"])
        if random["cuda"] is not None:
            torch.cuda.set_rng_state(random["cuda"], self.group.device)

    def _train_epoch(self, run: Run) -> None:
        """Runs the remaining steps of the current epoch."""
        settings, epoch = self.recipe.train, self.epoch + 1
        self.training_step.model.train()
        batches = train_batches(self.train_split, self.recipe, epoch=epoch, shard=self.group.shard, start=self.step)
        waited, start, wait_start = 0.0, time.perf_counter(), time.perf_counter()
        with Progress(f"epoch {epoch}/{settings.epochs}", self.steps_per_epoch * settings.batch) as progress:
            for batch in self.loader.batches(batches):
                waited += time.perf_counter() - wait_start
                self._count_bad_clips(batch)
                accumulated = (self.step + 1) % settings.accumulate == 0
                self.training_step.backward(batch.clips, batch.labels, epoch=epoch, step=self.step, last=accumulated)
                self.step += 1
                if accumulated:
                    self._optimizer_step()
                    self._save_or_stop_if_due(run)
                if self.group.is_rank_zero and (progress.due() or self.step == self.steps_per_epoch):
                    loss, top1 = self.training_step.metrics.read()
                    progress.show(
                        self.step * settings.batch,
                        loss=f"{loss:.3f}",
                        top_1=f"{top1:.1f}%",
                        rate=f"{self.training_step.learning_rate:.2g}",
                        waiting=f"{waited / (time.perf_counter() - start):.0%}",
                    )
                wait_start = time.perf_counter()
        self.training_step.check_pending()

    def _optimizer_step(self) -> None:
        """One optimizer step at the scheduled learning rate; every `train.log_every` steps, a line of metrics."""
        settings = self.recipe.train
        rate = learning_rate(
            self.optimizer_steps,
            steps=self.optimizer_steps_per_epoch * settings.epochs,
            warmup=round(self.optimizer_steps_per_epoch * settings.warmup_epochs),
            peak=scaled_learning_rate(settings, self.group.size),
        )
        self.training_step.optimizer_step(rate, self._position())
        self.optimizer_steps += 1
        if self.optimizer_steps % settings.log_every == 0:
            loss, top1 = self.training_step.metrics.read_since_last(self.group)
            self._log_metrics(
                epoch=self.epoch + (self.step / self.steps_per_epoch), loss=loss, top1=top1, learning_rate=rate
            )

    def _evaluate(self, run: Run) -> Evaluation:
        def stop() -> None:
            if self._stop_requested():
                self._save_and_stop(run)

        # Batch norm statistics differ between processes, since each sees its own shard.
        self.group.broadcast(self.training_step.eval_model.buffers())
        return evaluate(
            self.training_step.eval_model,
            self.validation_split,
            self.recipe,
            device=self.group.device,
            precision=self.precision,
            loader=self.validation_loader,
            group=self.group,
            after_each_batch=stop,
        )

    def _save_or_stop_if_due(self, run: Run) -> None:
        """Saves and stops if a signal came; saves if the last checkpoint is older than `train.checkpoint_minutes`."""
        if self._stop_requested():
            self._save_and_stop(run)
        due = time.monotonic() - self._last_save > 60 * self.recipe.train.checkpoint_minutes
        if self.group.any(due) if self.group.size > 1 else due:
            self._save(run, best=False)

    def _stop_requested(self) -> bool:
        """Whether any process has received a signal. All processes stop together."""
        received = bool(self._signals.signal)
        return self.group.any(received) if self.group.size > 1 else received

    def _save_and_stop(self, run: Run) -> None:
        import signal

        self._save(run, best=False)
        number = self._signals.signal or signal.SIGTERM
        raise Stopped(
            f"stopped by {signal.Signals(number).name} after {self._position()}; "
            f"continue with `ssv2rt train --resume {run.name}`",
            number,
        )

    def _count_bad_clips(self, batch: ClipBatch) -> None:
        """Logs the clips that could not be decoded.

        Raises:
            UserError: they are more than `data.max_bad` allows.
        """
        for clip in batch.bad:
            self.bad += 1
            logger.warning(f"skipped {clip.request.path}: {clip.reason}")
        allowed = max(1, self.recipe.data.max_bad * len(self.train_split))
        if self.bad > allowed * (self.epoch + 1):
            raise UserError(
                f"{self.bad} clips could not be decoded by {self._position()}, more than data.max_bad = "
                f"{self.recipe.data.max_bad:g} allows; check the videos with `ssv2rt index --decode`, or raise data.max_bad"
            )

    def _write_environment(self, run: Run) -> None:
        write_environment(run, self.group.device, self.decoder_trust, sorted(self.loader.avoid))

    def _position(self) -> str:
        """Epoch and step, for messages."""
        return f"epoch {self.epoch + 1}, step {self.step}"

    def _log(self, text: str) -> None:
        if self.group.is_rank_zero:
            logger.info(text)

    def _log_metrics(self, *, epoch: float, **facts: object) -> None:
        if self.group.is_rank_zero:
            self._metrics_log.write(epoch=epoch, update=self.optimizer_steps, **facts)

    def _save(self, run: Run, *, best: bool) -> None:
        """Saves a checkpoint. Every process contributes its random state and metrics; rank 0 writes the files."""
        self.training_step.check_pending()
        training_step = self.training_step
        own_state = {
            "random": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(self.group.device) if self.group.device.type == "cuda" else None,
            },
            "tally": training_step.metrics.values.cpu(),
        }
        states = self.group.gather(own_state)
        self._last_save = time.monotonic()
        if not self.group.is_rank_zero:
            return
        state: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.step,
            "update": self.optimizer_steps,
            "bad": self.bad,
            "best": self.best.as_dict() if self.best else None,
            "labels": list(self.train_split.labels),
            "clips": len(self.train_split),
            "processes": self.group.size,
            "model": training_step.model.state_dict(),
            "average": training_step.ema_model.state_dict() if training_step.ema_model is not None else None,
            "optimiser": training_step.optimizer.state_dict(),
            "scaler": training_step.scaler.state_dict(),
            "random": [own["random"] for own in states],
            "tally": [own["tally"] for own in states],
        }
        save_checkpoint(
            run,
            training_step.eval_model,
            state,
            labels=self.train_split.labels,
            recipe=self.recipe,
            best=best,
            step=self.step,
        )
        self._write_environment(run)
        run.make_latest()

    def _check_data(self, manifest: Manifest) -> None:
        """Raises UserError if the data set cannot be trained on with this recipe."""
        settings = self.recipe.train
        if len(manifest.labels) < 2:
            raise UserError(f"the data has {len(manifest.labels)} class; training needs at least two")
        for split in (self.train_split, self.validation_split):
            if (split.classes < 0).any():
                raise UserError(
                    f"clips in '{split.folder}' have no label; training and validation need a label for each"
                )
        if len(self.train_split) < settings.batch * settings.accumulate * self.group.size:
            processes = f" x {self.group.size} processes" if self.group.size > 1 else ""
            raise UserError(
                f"{len(self.train_split)} training clips do not fill one update of {settings.batch} x "
                f"{settings.accumulate} clips{processes} (train.batch_size x train.accumulate); lower one of the two"
            )


def _build_initial_model(recipe: Recipe, labels: Sequence[str], group: Group) -> ClipModel:
    """Builds the model with random weights, or with those of `model.init`, and applies the recipe's model settings."""
    model = build_model(recipe.model, len(labels))
    if recipe.model.init:

        def initialize() -> LoadReport:
            return initialize_from(model, recipe.model.init, how=recipe.model.inflate, labels=labels)

        report = group.from_rank_zero(initialize)
        if group.is_rank_zero:
            logger.info(str(report))
        else:
            initialize()
    if recipe.model.drop_path:
        set_drop_path(model, recipe.model.drop_path)
    if recipe.model.checkpointing:
        set_checkpointing(model, True)
    if recipe.train.freeze_backbone:
        freeze_backbone(model)
    return model


def _quality(evaluation: Evaluation) -> tuple[float, float]:
    """Sort key of evaluations: higher top-1 is better; at the same top-1, lower loss is better."""
    return evaluation.top1, -evaluation.loss if math.isfinite(evaluation.loss) else -math.inf


def _check_compiler(group: Group) -> None:
    """Raises UserError if there is no C++ compiler, which torch.compile needs on a CPU."""
    compiler = os.environ.get("CXX", "g++")
    if group.device.type == "cpu" and not (shutil.which(compiler) or shutil.which("clang++")):
        raise UserError(
            f"train.compile = true needs a C++ compiler on a CPU, and '{compiler}' is not installed; "
            f"install g++, or leave train.compile out"
        )
