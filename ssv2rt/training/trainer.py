"""The training loop."""

from __future__ import annotations

import json
import math

import torch
from torch.nn import functional as F

from ssv2rt.console import Progress, say
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.errors import UserError
from ssv2rt.hardware import choose_device, choose_precision, describe
from ssv2rt.models.registry import build_model
from ssv2rt.pipelines.epochs import steps_per_epoch, train_batches
from ssv2rt.pipelines.loader import ClipBatch, ClipLoader
from ssv2rt.recipe_files import dump_recipe
from ssv2rt.recipes import Recipe
from ssv2rt.runs import Run, write_json, write_text
from ssv2rt.training.checkpoint import save_checkpoint
from ssv2rt.training.evaluate import DTYPES, Evaluation, evaluate, evaluation_loader
from ssv2rt.training.optimiser import build_optimiser, learning_rate


class Trainer:
    """Trains one model from fresh weights.

    Args:
        recipe: every setting.
        manifest: the data; its labels become the classes.

    Raises:
        UserError: the data is not enough for the recipe, or a setting does not fit the machine.
    """

    def __init__(self, recipe: Recipe, manifest: Manifest) -> None:
        self.recipe = recipe
        self.device = choose_device()
        self.precision = choose_precision(recipe.train.precision, self.device)
        self.train = manifest.split("train", recipe.data.max_bad)
        self.validation = manifest.split("validation", recipe.data.max_bad)
        if len(manifest.labels) < 2:
            raise UserError(
                f"the data has {len(manifest.labels)} class, and there is nothing to tell apart; it needs two"
            )
        for split in (self.train, self.validation):
            if (split.classes < 0).any():
                raise UserError(
                    f"clips in '{split.folder}' have no label; training and validation need a template each"
                )
        settings = recipe.train
        if len(self.train) < settings.batch_size * settings.accumulate:
            raise UserError(
                f"{len(self.train)} training clips do not fill one update of {settings.batch_size} x "
                f"{settings.accumulate} clips (train.batch_size x train.accumulate); lower one of them"
            )
        steps = steps_per_epoch(len(self.train), batch=settings.batch_size, accumulate=settings.accumulate)
        self.updates_per_epoch = steps // settings.accumulate
        torch.manual_seed(recipe.train.seed)
        self.model = build_model(recipe.model, len(manifest.labels)).channels_last().to(self.device)
        self.optimiser = build_optimiser(self.model, recipe.train)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.loader = ClipLoader(
            clip=recipe.clip.one_view(),
            batch=recipe.train.batch_size,
            data=recipe.data,
            device=self.device,
            augment=recipe.augment.repaints,
        )
        self.validation_loader = evaluation_loader(recipe, self.device)
        self.epoch = self.update = self.bad = 0
        self.best = (-1.0, 0.0)  # top-1, then the loss, negative

    def fit(self, run: Run) -> Evaluation:
        """Runs every epoch, and writes what `run` is to hold. Returns the best epoch's evaluation."""
        settings = self.recipe.train
        write_text(run.recipe_file, dump_recipe(self.recipe))
        write_json(run.path / "environment.json", describe(self.device))
        say(f"training {self.recipe.model.name} on {len(self.train)} clips, {self.device}, {self.precision}")
        for self.epoch in range(1, settings.epochs + 1):
            clips = self.updates_per_epoch * settings.accumulate * settings.batch_size
            with Progress(f"epoch {self.epoch}/{settings.epochs}", clips) as progress:
                loss, top1 = self._train_epoch(progress)
            evaluation = evaluate(
                self.model,
                self.validation,
                self.recipe,
                device=self.device,
                precision=self.precision,
                loader=self.validation_loader,
            )
            say(
                f"epoch {self.epoch}/{settings.epochs}: loss {loss:.3f}, top-1 {top1:.1f}%; validation loss "
                f"{evaluation.loss:.3f}, top-1 {evaluation.top1:.1f}%, top-5 {evaluation.top5:.1f}%"
            )
            standing = (evaluation.top1, -evaluation.loss)
            if standing > self.best:
                self.best, result = standing, evaluation
            self._log(run, train_loss=loss, train_top1=top1, bad=self.bad, validation=evaluation.as_dict())
            self._save(run, best=result is evaluation)
        return result

    def _train_epoch(self, progress: Progress) -> tuple[float, float]:
        """One pass over the training clips. Returns mean loss and top-1 in percent, as seen while training."""
        self.model.train()
        accumulate = self.recipe.train.accumulate
        losses, right, seen = 0.0, 0, 0
        for number, batch in enumerate(
            self.loader.batches(train_batches(self.train, self.recipe, epoch=self.epoch)), start=1
        ):
            self._count_bad(batch)
            if batch.requests:
                loss, hits = self._backward(batch)
                losses, right, seen = losses + loss * len(batch.requests), right + hits, seen + len(batch.requests)
            if number % accumulate == 0:
                self._update_weights()
            if seen:
                progress.show(seen, loss=f"{losses / seen:.3f}", top_1=f"{100 * right / seen:.1f}%")
        return losses / max(1, seen), 100 * right / max(1, seen)

    def _backward(self, batch: ClipBatch) -> tuple[float, int]:
        """Adds a batch's gradient. Returns its mean loss, and how many clips were right."""
        settings, labels = self.recipe.train, batch.labels
        with torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32"):
            logits = self.model(batch.clips)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=settings.label_smoothing)
        value = loss.item()
        if not math.isfinite(value):
            raise UserError(f"loss is {value} at {self._where()}; stopped before it reached the weights; {_REMEDY}")
        self.scaler.scale(loss / settings.accumulate).backward()
        return value, int((logits.argmax(1) == labels).sum().item())

    def _update_weights(self) -> None:
        settings = self.recipe.train
        self.scaler.unscale_(self.optimiser)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm or math.inf).item()
        if not math.isfinite(norm) and not self.scaler.is_enabled():  # the scaler skips such steps by itself
            raise UserError(
                f"the gradient is not finite at {self._where()}; stopped before it reached the weights; {_REMEDY}"
            )
        rate = learning_rate(
            self.update,
            steps=self.updates_per_epoch * settings.epochs,
            warmup=round(self.updates_per_epoch * settings.warmup_epochs),
            peak=settings.learning_rate,
        )
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self.update += 1

    def _count_bad(self, batch: ClipBatch) -> None:
        for clip in batch.bad:
            self.bad += 1
            say(f"skipped {clip.request.path}: {clip.reason}")
        allowed = max(1, self.recipe.data.max_bad * len(self.train))
        if self.bad > allowed * self.epoch:
            raise UserError(
                f"{self.bad} clips could not be decoded by {self._where()}, more than data.max_bad = "
                f"{self.recipe.data.max_bad:g} allows; look at the videos, or raise it"
            )

    def _where(self) -> str:
        return f"epoch {self.epoch}, update {self.update}"

    def _log(self, run: Run, **facts: object) -> None:
        line = {"epoch": self.epoch, "update": self.update, **facts}
        with run.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _save(self, run: Run, *, best: bool) -> None:
        state = {
            "epoch": self.epoch,
            "update": self.update,
            "best": self.best,
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        save_checkpoint(run, self.model, state, labels=self.train.labels, recipe=self.recipe, best=best)
        run.make_latest()


_REMEDY = "lower train.learning_rate, lengthen train.warmup_epochs, or set train.clip_norm"
