"""The part of a trainer that checkpoints save and restore, so that a resumed run equals one without interruption."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch

from ssv2rt.core.errors import UserError, one_line
from ssv2rt.core.recipes import Recipe
from ssv2rt.core.run_folders import Run
from ssv2rt.dataset.manifest import Manifest, Split
from ssv2rt.pipelines.decoder_trust import DecoderTrust
from ssv2rt.pipelines.loader import ClipLoader
from ssv2rt.training.checkpoint import State, load_state, save_checkpoint
from ssv2rt.training.decoding import apply_decoding_record, merged, read_decoding_record, write_environment
from ssv2rt.training.distributed import Group
from ssv2rt.training.evaluate import Evaluation
from ssv2rt.training.step import TrainingStep

logger = logging.getLogger(__name__)


def data_digest(training: Split, validation: Split) -> str:
    """A hash of the clips of a training; see `Split.digest`."""
    return f"{training.digest()} {validation.digest()}"


class CheckpointedTraining:
    """What a run has come to, and how it is saved and restored. `Trainer` sets the attributes without a value."""

    recipe: Recipe
    manifest: Manifest
    group: Group
    train_split: Split
    validation_split: Split
    training_step: TrainingStep
    decoder_trust: DecoderTrust
    loader: ClipLoader
    loaders: dict[str, ClipLoader]
    """The loaders of training and validation clips."""
    steps_per_epoch: int
    optimizer_steps_per_epoch: int
    data_digest: str

    def __init__(self) -> None:
        self.epoch = 0
        """Number of complete epochs."""
        self.step = 0
        """Number of batches done in the current epoch."""
        self.optimizer_steps = 0
        """Number of optimizer steps in the whole run. Called "update" in metrics.jsonl and checkpoints."""
        self.bad = 0
        """Number of training clips that this process could not decode; rank 0 also counts those of before a resume."""
        self.best: Evaluation | None = None
        self.last_save = time.monotonic()

    def resume(self, run: Run, given: frozenset[str] = frozenset()) -> None:
        """Restores the last checkpoint of a run.

        Args:
            run: the run.
            given: settings of the recipe that come from the command line, such as `train.epochs`, for messages.

        Raises:
            UserError: there is no checkpoint, or it does not match the recipe, the data set or the world size.
        """
        # Other machines have no folder of the run, unless they share it.
        state = self.group.from_rank_zero(lambda: load_state(run, self.recipe, given))
        record = merged(self.group.gather(read_decoding_record(run)))
        apply_decoding_record(record, self.decoder_trust, self.loaders)
        if record.crashed:
            self.log(
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
        if state.data and state.data != self.data_digest:
            raise UserError(
                f"the clips in '{self.manifest.folder}' are not those that run '{run.path}' was trained with: other names, "
                f"labels, or lengths; give it the same clips, or start a new run"
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

    def save(self, run: Run, *, best: bool) -> None:
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
        self.last_save = time.monotonic()
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
            "data": self.data_digest,
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
        self.write_environment(run)
        run.make_latest()

    def write_environment(self, run: Run) -> None:
        """Writes environment.json."""
        write_environment(run, self.group.device, self.decoder_trust, sorted(self.loader.avoid))

    def check_same_everywhere(self, value: str, what: str) -> None:
        """Raises UserError, in all processes, unless all of them have read the same."""
        if len(set(self.group.gather(value))) > 1:
            error = UserError(
                f"{what} differs between the processes that train together; see that all read the same files"
            )
            raise self.group.shared(error)

    def log(self, text: str) -> None:
        """Logs a line in rank 0."""
        if self.group.is_rank_zero:
            logger.info(text)
