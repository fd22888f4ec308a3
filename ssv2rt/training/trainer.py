"""The training loop: load, step, validate and save, with resume and several processes."""

from __future__ import annotations

import logging
import math
import time
from contextlib import AbstractContextManager
from typing import Any

import torch

from ssv2rt.core.atomic_files import write_text
from ssv2rt.core.errors import UserError, one_line, out_of_memory_as_user_error
from ssv2rt.core.hardware import choose_device, choose_precision
from ssv2rt.core.progress import Progress
from ssv2rt.core.recipe_files import dump_recipe
from ssv2rt.core.recipes import Recipe
from ssv2rt.core.run_folders import Run
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.pipelines.decoder_choice import make_trust
from ssv2rt.pipelines.loader import ClipBatch, ClipLoader
from ssv2rt.pipelines.samplers import steps_per_epoch, train_batches
from ssv2rt.training.batch_size import resolve_batch_size
from ssv2rt.training.check_setup import check_compiler, check_data
from ssv2rt.training.checkpoint import State, load_state, remove_old_checkpoints, save_checkpoint
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
from ssv2rt.training.evaluate import BadClips, Evaluation, evaluate, evaluation_loader
from ssv2rt.training.initial_model import build_initial_model
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
        resumes: whether `resume` will be called, so that the initial weights of the recipe are not needed.

    Raises:
        UserError: the data set is too small for the recipe, or this machine cannot run a setting.
    """

    def __init__(
        self, recipe: Recipe, manifest: Manifest, group: Group | None = None, *, resumes: bool = False
    ) -> None:
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
        model = build_initial_model(recipe, manifest.labels, group, initialize_weights=not resumes)
        model = model.channels_last().to(group.device)
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
        digests = (part.digest() for part in (self.train_split, self.validation_split))
        self._data_digest = " ".join(digests)
        self._check_same_everywhere(self._data_digest, f"the data set in '{manifest.folder}'")
        self._check_same_everywhere(recipe.model_dump_json(), "the recipe")
        self.epoch = 0
        """Number of complete epochs."""
        self.step = 0
        """Number of batches done in the current epoch."""
        self.optimizer_steps = 0
        """Number of optimizer steps in the whole run. Called "update" in metrics.jsonl and checkpoints."""
        self.bad = 0
        """Number of training clips that this process could not decode; rank 0 also counts those of before a resume."""
        self._bad_clips = BadClips()
        self.best: Evaluation | None = None
        self._last_save = time.monotonic()

    def _check_same_everywhere(self, value: str, what: str) -> None:
        """Raises UserError, in all processes, unless all of them have read the same."""
        if len(set(self.group.gather(value))) > 1:
            raise UserError(
                f"{what} differs between the processes that train together; see that all read the same files"
            )

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
            with recording_crashes(run, self.group.rank, self._loaders):
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
        while self.epoch < self.recipe.train.epochs:
            self._train_epoch(run)
            evaluation = self._evaluate(run)
            self._finish_epoch(run, evaluation)

    def _start(self, run: Run) -> None:
        """Writes the files that a run has from the beginning."""
        if self.group.is_rank_zero:
            run.remove_partial_files()
            remove_old_checkpoints(run)
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
        bad = int(self.group.sum(self.bad)[0])
        self._check_bad_clips(bad)
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
            bad=bad,
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
        state, digest = load_state(run, self.recipe)
        self._check_same_everywhere(digest, f"the checkpoint of '{run.path}'")
        record = self.group.from_rank_zero(lambda: read_decoding_record(run))
        apply_decoding_record(record, self.decoder_trust, self._loaders)
        if record.crashed:
            self._log(
                f"the process crashed while DALI decoded {len(record.crashed)} clips, such as '{record.crashed[0]}'; "
                f"from now on, PyAV decodes these clips"
            )
        self.manifest.check_classes(state.labels, f"run '{run.path}'")
        for name, saved, current in (
            ("clips", state.clips, len(self.train_split)),
            ("processes", state.processes, self.group.size),
        ):
            if saved != current:
                raise UserError(
                    f"run '{run.path}' was trained with {saved} {name}, and there are {current} now; "
                    f"resume it with the same number"
                )
        if state.data and state.data != self._data_digest:
            raise UserError(
                f"the clips in '{self.manifest.folder}' are not those that run '{run.path}' was trained with: other names, "
                f"labels, or lengths; change them back, or start a new run"
            )
        try:
            self._restore(state)
        except Exception as error:  # a state that fits in its types can still be damaged
            raise UserError(
                f"the checkpoint of '{run.path}' does not fit the model: {one_line(error)}; start a new run"
            ) from None

    def _restore(self, state: State) -> None:
        """Copies a state to this trainer. Any exception means that it does not fit."""
        if state.update != state.epoch * self.optimizer_steps_per_epoch + state.step // self.recipe.train.accumulate:
            raise ValueError(f"{state.update} optimizer steps by epoch {state.epoch}, step {state.step}")
        if state.epoch + bool(state.step) > self.recipe.train.epochs or state.step > self.steps_per_epoch:
            raise ValueError(f"epoch {state.epoch}, step {state.step} is behind the end")
        training_step, rank = self.training_step, self.group.rank
        training_step.model.load_state_dict(state.model)
        training_step.load_optimizer_state(state.optimiser)
        if training_step.ema_model is not None:
            training_step.ema_model.load_state_dict(state.average or {})
        training_step.scaler.load_state_dict(state.scaler)
        if state.tally[rank].shape != training_step.metrics.values.shape:
            raise ValueError(f"metrics of shape {list(state.tally[rank].shape)}")
        training_step.metrics.values.copy_(state.tally[rank])
        self.epoch, self.step, self.optimizer_steps = state.epoch, state.step, state.update
        self.bad = state.bad if rank == 0 else 0
        self.best = Evaluation(**state.best.model_dump()) if state.best else None
        torch.set_rng_state(state.random[rank].cpu)
        if (cuda := state.random[rank].cuda) is not None and self.group.device.type == "cuda":
            torch.cuda.set_rng_state(cuda, self.group.device)

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
        self._bad_clips.add(batch.bad)
        self._check_bad_clips(self.bad)

    def _check_bad_clips(self, bad: int) -> None:
        allowed = max(1, self.recipe.data.max_bad * len(self.train_split))
        if bad > allowed * (self.epoch + 1):
            raise UserError(
                f"{bad} clips could not be decoded by {self._position()}, more than data.max_bad = "
                f"{self.recipe.data.max_bad:g} allows: {self._bad_clips}; the log names each ('skipped'); mend or remove "
                f"these files, or raise data.max_bad"
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
            "bad": self.bad,
        }
        states = self.group.gather(own_state)
        self._last_save = time.monotonic()
        if not self.group.is_rank_zero:
            return
        state: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.step,
            "update": self.optimizer_steps,
            "bad": sum(own["bad"] for own in states),
            "best": self.best.as_dict() if self.best else None,
            "labels": list(self.train_split.labels),
            "clips": len(self.train_split),
            "processes": self.group.size,
            "data": self._data_digest,
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


def _quality(evaluation: Evaluation) -> tuple[float, float]:
    """Sort key of evaluations: higher top-1 is better; at the same top-1, lower loss is better."""
    return evaluation.top1, -evaluation.loss if math.isfinite(evaluation.loss) else -math.inf
