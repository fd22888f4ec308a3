"""The training loop: load, step, validate and save, with resume and several processes."""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager, closing, nullcontext
from itertools import islice

import torch

from ssv2rt.core.atomic_files import write_text
from ssv2rt.core.errors import UserError, out_of_memory_as_user_error
from ssv2rt.core.hardware import choose_device, choose_precision
from ssv2rt.core.progress import Progress
from ssv2rt.core.quantities import clock
from ssv2rt.core.recipe_files import dump_recipe
from ssv2rt.core.recipes import Recipe
from ssv2rt.core.run_folders import Run
from ssv2rt.dataset.labels import flips_in_words
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.pipelines.decoder_choice import make_trust
from ssv2rt.pipelines.loader import ClipBatch, ClipLoader
from ssv2rt.pipelines.samplers import steps_per_epoch, train_batches
from ssv2rt.training.batch_size import resolve_batch_size
from ssv2rt.training.check_setup import check_compiler, check_data
from ssv2rt.training.checkpoint import remove_old_checkpoints
from ssv2rt.training.checkpointed import CheckpointedTraining, data_digest
from ssv2rt.training.confusion import write_confusion
from ssv2rt.training.decoding import clear_crash_records, recording_crashes
from ssv2rt.training.determinism import explain_determinism_errors, set_deterministic
from ssv2rt.training.distributed import Group
from ssv2rt.training.evaluate import BadClips, Evaluation, evaluate, evaluation_loader, top5_says_something
from ssv2rt.training.imbalance import after_flips, best_by, class_weights, clips_per_class, imbalance_in_words, quality
from ssv2rt.training.initial_model import build_initial_model
from ssv2rt.training.metrics_log import MetricsLog
from ssv2rt.training.optimizer import Schedule
from ssv2rt.training.pace import Pace
from ssv2rt.training.precise_batch_norm import measure_batch_norm
from ssv2rt.training.signals import SignalHandler, Stopped
from ssv2rt.training.step import TrainingStep
from ssv2rt.training.sync_batch_norm import convert_sync_batch_norm
from ssv2rt.training.trackers import open_trackers

logger = logging.getLogger(__name__)


class Trainer(CheckpointedTraining):
    """Trains one model.

    Args:
        recipe: all settings of the run. They are taken as they are; see `fit_to_data` for `train.fit_to_data`.
        manifest: the data set; its labels become the classes.
        group: this process's place among the processes that train together; by default a single process on the first GPU,
            or on the CPU.
        initialize_weights: False if `resume` will be called, or nothing is trained: initial weights are not needed then.

    Raises:
        UserError: the data set is too small for the recipe, or this machine cannot run a setting.
    """

    def __init__(
        self, recipe: Recipe, manifest: Manifest, group: Group | None = None, *, initialize_weights: bool = True
    ) -> None:
        super().__init__()
        self.group = group = group or Group(0, 1, choose_device())
        self.precision = choose_precision(recipe.train.precision, group.device)
        set_deterministic(recipe.train.deterministic)
        self.recipe = recipe = resolve_batch_size(recipe, len(manifest.labels), self.precision, group)
        self.manifest, settings = manifest, recipe.train
        self.train_split = manifest.split("train", recipe.data.max_bad)
        self.validation_split = manifest.split("validation", recipe.data.max_bad)
        check_data(self.train_split, self.validation_split, settings, group)
        self.steps_per_epoch = steps_per_epoch(
            len(self.train_split), batch=settings.batch, accumulate=settings.accumulate, shards=group.size
        )
        self.optimizer_steps_per_epoch = self.steps_per_epoch // settings.accumulate
        if settings.compile:
            check_compiler(group)
        torch.manual_seed(settings.seed)
        model = build_initial_model(recipe, manifest.labels, group, initialize_weights=initialize_weights)
        model = model.channels_last().to(group.device)
        if settings.sync_bn and group.size > 1:
            convert_sync_batch_norm(model, group.device)
        self._clips = clips = clips_per_class(self.train_split.classes, len(manifest.labels))
        seen = after_flips(clips, self.train_split.mirrored) if recipe.augment.flip == "label-aware" else clips
        self.training_step = TrainingStep(model, settings, self.precision, group, class_weights(seen, settings))
        self.schedule = Schedule(settings, self.optimizer_steps_per_epoch, group.size)
        torch.manual_seed(settings.seed + group.rank)  # so that each process draws its own dropout masks
        self.decoder_trust = make_trust(recipe.data, group.device)
        self.loader = ClipLoader(
            clip=recipe.clip.one_view(),
            batch=settings.batch,
            data=recipe.data,
            device=group.device,
            augment=recipe.augment.has_pixel_augment,
            measured=None if settings.deterministic else self.log,
            decoder_trust=self.decoder_trust,
        )
        self.validation_loader = evaluation_loader(recipe, group.device, self.decoder_trust)
        self.loaders = {"train": self.loader, "validation": self.validation_loader}
        self.data_digest = data_digest(self.train_split, self.validation_split)
        self.check_same_everywhere(self.data_digest, f"the data set in '{manifest.folder}'")
        # Where the data lies may differ between machines.
        self.check_same_everywhere(recipe.model_dump_json(exclude={"data": {"root"}}), "the recipe")
        self._bad_clips = BadClips()
        self._pace = Pace(self.steps_per_epoch)

    @property
    def model(self) -> torch.nn.Module:
        return self.training_step.model

    def fit(self, run: Run) -> Evaluation:
        """Trains to the last epoch, from the start or from where `resume` left off. All files are written to `run`.

        The caller holds the lock of the run (`core.locks.exclusive`) where another process may train it.

        Returns:
            The evaluation of the best epoch.

        Raises:
            Stopped: a signal came; a checkpoint has been saved.
            UserError: a loss or gradient is not finite, too many clips could not be decoded, or a file cannot be written.
        """
        with (
            run.os_errors_as_user_errors(),
            self._out_of_memory_as_user_error(),
            SignalHandler() as self._signals,
            explain_determinism_errors(self.recipe.model.name),
        ):
            self._start(run)
            log = closing(self._metrics_log) if self.group.is_rank_zero else nullcontext()
            with log, recording_crashes(run, self.group.rank, self.loaders):
                self._train_epochs(run)
        assert self.best is not None
        return self.best

    def _out_of_memory_as_user_error(self) -> AbstractContextManager[None]:
        settings, unused = self.recipe.train, "" if self.recipe.model.checkpointing else ", or set model.checkpointing"
        return out_of_memory_as_user_error(
            f"training on {self.group.device} in batches of {settings.batch} clips",
            f"lower train.batch_size and raise train.accumulate{unused}, or lower clip.size or clip.frames",
        )

    def _train_epochs(self, run: Run) -> None:
        while not self.is_finished:
            self._train_epoch(run)
            start = time.monotonic()
            evaluation = self._evaluate(run)
            self._pace.evaluation = time.monotonic() - start
            self._finish_epoch(run, evaluation)

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are complete."""
        return self.epoch >= self.recipe.train.epochs

    def _start(self, run: Run) -> None:
        """Writes the files that a run has from the beginning."""
        if self.group.is_rank_zero:
            run.remove_partial_files()
            remove_old_checkpoints(run)
            write_text(run.recipe_file, dump_recipe(self.recipe))
            self.write_environment(run)
            if not self.is_finished:
                self._say_what_starts(run)
            trackers = [] if self.is_finished else open_trackers(run, self.recipe, self.optimizer_steps)
            self._metrics_log = MetricsLog(run, epoch=self.epoch, update=self.optimizer_steps, trackers=trackers)
        if self.group.speaks:  # one process on each machine
            clear_crash_records(run)
        self.group.meeting()

    def _say_what_starts(self, run: Run) -> None:
        self.log(
            f"training {self.recipe.model.name} on {len(self.train_split)} clips, {self.group.device}, {self.precision}: "
            f"run '{run.path}'"
        )
        if self.recipe.augment.flip == "label-aware":
            self.log(flips_in_words(self.manifest.labels))
        if text := imbalance_in_words(self._clips, self.manifest.labels, self.recipe.train):
            self.log(text)
        if self.recipe.train.batch == 1 and (self.recipe.train.mixup or self.recipe.train.cutmix):
            logger.warning(
                "train.mixup and train.cutmix mix the clips of a batch: with train.batch_size = 1 they do nothing"
            )

    def _finish_epoch(self, run: Run, evaluation: Evaluation) -> None:
        """Logs the epoch, remembers it if it is the best so far, and saves a checkpoint."""
        loss, top1 = self.training_step.metrics.read(self.group)
        bad = int(self.group.sum(self.bad)[0])
        self._check_bad_clips(bad)
        self.epoch, self.step, settings = self.epoch + 1, 0, self.recipe.train
        self.training_step.metrics.values.zero_()
        top5 = f", top-5 {evaluation.top5:.1f}%" if top5_says_something(len(self.manifest.labels)) else ""
        epochs = settings.epochs - self.epoch
        left = f"; {clock(self._pace.seconds_of(epochs))} left" if epochs and self._pace.steps else ""
        self.log(
            f"epoch {self.epoch}/{settings.epochs}: loss {loss:.3f}, top-1 {top1:.1f}%; validation loss "
            f"{evaluation.loss:.3f}, top-1 {evaluation.top1:.1f}%{top5}{left}"
        )
        by = best_by(self._clips, settings)
        if best := self.best is None or quality(evaluation, by) > quality(self.best, by):
            self.best = evaluation
        self._log_metrics(
            epoch=self.epoch,
            train_loss=loss,
            train_top1=top1,
            bad=bad,
            learning_rate=self.schedule(self.optimizer_steps - 1),
            validation=evaluation.as_dict(),
        )
        if best and self.group.is_rank_zero and evaluation.confusion is not None:
            write_confusion(run.confusion_file, evaluation.confusion, self.train_split.labels)
        self.save(run, best=best)

    def _train_epoch(self, run: Run) -> None:
        """Runs the remaining steps of the current epoch."""
        settings, epoch = self.recipe.train, self.epoch + 1
        self.training_step.model.train()
        batches = train_batches(self.train_split, self.recipe, epoch=epoch, shard=self.group.shard, start=self.step)
        waited, start, wait_start, first = 0.0, time.perf_counter(), time.perf_counter(), self.step
        clips, quiet = len(self.train_split), not self.group.is_rank_zero
        done = clips * self.step // self.steps_per_epoch  # of all processes; the last step of an epoch is filled up
        with Progress(f"epoch {epoch}/{settings.epochs}", clips, quiet=quiet, already_done=done) as progress:
            for batch in self.loader.batches(batches):
                waited += time.perf_counter() - wait_start
                self._count_bad_clips(batch)
                accumulated = (self.step + 1) % settings.accumulate == 0
                self.training_step.backward(batch.clips, batch.labels, epoch=epoch, step=self.step, last=accumulated)
                self.step += 1
                if accumulated:
                    self._optimizer_step()
                    self._save_or_stop_if_due(run)
                self._pace.add_step(time.perf_counter() - wait_start)
                wait_start = time.perf_counter()
                if self.group.is_rank_zero and (progress.due() or self.step == self.steps_per_epoch):
                    seconds, (loss, top1) = wait_start - start, self.training_step.metrics.read()
                    facts = {
                        "loss": f"{loss:.3f}",
                        "top-1": f"{top1:.1f}%",
                        "rate": f"{self.training_step.learning_rate:.2g}",
                        "waiting": f"{waited / seconds:.0%}",
                    }
                    if epoch < settings.epochs:  # the time that the last epoch takes is that of the progress itself
                        steps, per_step = self.steps_per_epoch - self.step, seconds / (self.step - first)
                        left = self._pace.seconds_of(settings.epochs - epoch, steps=steps, seconds_per_step=per_step)
                        facts = {"whole run": f"{clock(left)} left", **facts}
                    progress.show(clips * self.step // self.steps_per_epoch, None, **facts)
        self.training_step.check_pending()

    def _optimizer_step(self) -> None:
        """One optimizer step at the scheduled learning rate; every `train.log_every` steps, a line of metrics."""
        settings = self.recipe.train
        rate = self.schedule(self.optimizer_steps)
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

        if number := self.recipe.train.precise_bn:
            batches = train_batches(self.train_split, self.recipe, epoch=self.epoch + 1, shard=self.group.shard)
            clips = (batch.clips for batch in self.loader.batches(islice(batches, number)))
            measure_batch_norm(self.training_step.eval_model, clips, self.precision)
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
        due = time.monotonic() - self.last_save > 60 * self.recipe.train.checkpoint_minutes
        if self.group.any(due) if self.group.size > 1 else due:
            self.save(run, best=False)

    def _stop_requested(self) -> bool:
        """Whether any process has received a signal. All processes stop together."""
        received = bool(self._signals.signal)
        return self.group.any(received) if self.group.size > 1 else received

    def _save_and_stop(self, run: Run) -> None:
        import signal

        self.save(run, best=False)
        number = self._signals.signal or signal.SIGTERM
        raise self.group.shared(
            Stopped(
                f"stopped by {signal.Signals(number).name}, and everything is saved: {self._done()}; continue with "
                f"`ssv2rt train --resume {run.name}`",
                number,
            )
        )

    def _count_bad_clips(self, batch: ClipBatch) -> None:
        """Logs the clips that could not be decoded.

        Raises:
            UserError: they are more than `data.max_bad` allows.
        """
        for clip in batch.bad:
            self.bad += 1
            logger.warning(f"skipped {clip.request.path}: {clip.reason}")
        self._bad_clips.add(batch.bad)
        self._check_bad_clips(self.bad)

    def _check_bad_clips(self, bad: int) -> None:
        allowed = max(1, self.recipe.data.max_bad * len(self.train_split))
        if bad > allowed * (self.epoch + 1):
            raise UserError(
                f"{bad} clips could not be decoded by {self._position()}, more than data.max_bad = "
                f"{self.recipe.data.max_bad:g} allows: {self._bad_clips}; the log names each ('skipped'); mend or remove "
                f"these files, or allow more with --set data.max_bad=SHARE"
            )

    def _done(self) -> str:
        """What has been trained so far, for messages."""
        epochs = f"{self.epoch} of {self.recipe.train.epochs} epochs"
        return f"{epochs} and {self.step} of {self.steps_per_epoch} batches of the next" if self.step else epochs

    def _position(self) -> str:
        """Epoch and step, for messages."""
        return f"epoch {self.epoch + 1}, step {self.step}"

    def _log_metrics(self, *, epoch: float, **facts: object) -> None:
        if self.group.is_rank_zero:
            self._metrics_log.write(epoch=epoch, update=self.optimizer_steps, **facts)
