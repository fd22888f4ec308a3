"""The order in which clips are seen: whole-set permutations or balanced classes, shards, and starting in the middle.

Step k of an epoch is made of the rows [k * B * W, (k + 1) * B * W) of one order, for B clips a step in each of W
shards; shard w has the w-th B of them. So the clips of a step do not depend on how many shards share them, nor on where
the epoch was begun.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np

from ssv2rt.core.recipes import Clip, Recipe
from ssv2rt.dataset.manifest import Split
from ssv2rt.pipelines.request_source import clip_rng, evaluation_request_of, training_request
from ssv2rt.pipelines.requests import ClipRequest

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` equal shares, such as a process of distributed training."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"shard {self.index} of {self.count}: shards are counted from 0 to one less than their number"
            )


WHOLE = Shard()


def epoch_order(rows: int, *, seed: int, epoch: int) -> np.ndarray:
    """int64 (rows,): a permutation of the whole set for an epoch."""
    return clip_rng(seed, epoch, "order of the epoch").permutation(rows)


def balanced_order(classes: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """As many rows as the set has, with equally many of each class, or one more of some, in random order.

    Each class has an order of its own that goes on from epoch to epoch and begins anew at its end. So the clips of a large
    class take turns, and those of a small one are repeated.

    Args:
        classes: int (rows,), the class number of each row.
        seed: of the run.
        epoch: its number, from 1.

    Returns:
        int64 (rows,)
    """
    rng, present = clip_rng(seed, epoch, "balanced order of the epoch"), np.unique(classes)
    each, rest = divmod(len(classes), len(present))
    one_more = set(rng.permutation(present)[:rest].tolist())
    chosen = []
    for number in present.tolist():
        members = clip_rng(seed, 0, f"order of class {number}").permutation(np.flatnonzero(classes == number))
        places = (epoch - 1) * each + np.arange(each + (number in one_more))
        chosen.append(members[places % len(members)])
    return rng.permutation(np.concatenate(chosen))


def earlier_occurrences(order: np.ndarray) -> np.ndarray:
    """int64 (N,): how often each entry of an order has occurred before."""
    by_value = np.argsort(order, kind="stable")
    ordered = order[by_value]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    counts = np.empty(len(order), np.int64)
    counts[by_value] = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    return counts


def train_rows(
    rows: int,
    *,
    batch: int,
    accumulate: int = 1,
    seed: int,
    epoch: int,
    shard: Shard = WHOLE,
    start: int = 0,
    order: np.ndarray | None = None,
) -> np.ndarray:
    """The rows of each step of an epoch that are one shard's.

    What does not fill the last change of the weights is filled up with the first clips of the order, so every clip of it
    is seen in every epoch.

    Args:
        rows: how many clips there are, at least 1.
        batch: B, clips per step and shard.
        accumulate: steps for one change of the weights.
        seed: of the run.
        epoch: its number.
        shard: which share.
        start: the first step that is wanted.
        order: int64 (rows,), the order of the whole epoch; by default a permutation.

    Returns:
        int64 (steps - start, B)
    """
    steps = steps_per_epoch(rows, batch=batch, accumulate=accumulate, shards=shard.count)
    order = epoch_order(rows, seed=seed, epoch=epoch) if order is None else order
    order = np.resize(order, steps * shard.count * batch)
    return order.reshape(steps, shard.count, batch)[start:, shard.index]


def steps_per_epoch(rows: int, *, batch: int, accumulate: int = 1, shards: int = 1) -> int:
    """Steps that show every clip, in whole changes of the weights."""
    return accumulate * -(-rows // (batch * shards * accumulate))


def evaluation_rows(rows: int, shard: Shard = WHOLE) -> np.ndarray:
    """int64: the rows of one shard, in order; the shards together have each row exactly once."""
    return np.arange(shard.index, rows, shard.count)


def train_batches(
    split: Split, recipe: Recipe, *, epoch: int, shard: Shard = WHOLE, start: int = 0
) -> Iterator[list[ClipRequest]]:
    """The steps of an epoch, from step `start`, as one shard sees them."""
    settings = recipe.train

    def steps(order: np.ndarray | None) -> np.ndarray:
        return train_rows(
            len(split),
            batch=settings.batch,
            accumulate=settings.accumulate,
            seed=settings.seed,
            epoch=epoch,
            shard=shard,
            start=start,
            order=order,
        )

    balanced = settings.sampler == "balanced"
    order = balanced_order(split.classes, seed=settings.seed, epoch=epoch) if balanced else None
    rows = steps(order)
    repeats = np.zeros_like(rows) if order is None else steps(earlier_occurrences(order))
    for step in zip(rows.tolist(), repeats.tolist(), strict=True):
        yield [
            training_request(
                split, row, clip=recipe.clip, augment=recipe.augment, seed=settings.seed, epoch=epoch, repeat=repeat
            )
            for row, repeat in zip(*step, strict=True)
        ]


def evaluation_batches(
    split: Split, clip: Clip, *, batch: int, shard: Shard = WHOLE, rows: np.ndarray | None = None
) -> Iterator[list[ClipRequest]]:
    """The plain requests of every clip of a split, or of the given rows, that are one shard's, in order.

    Args:
        split: the clips.
        clip: what the network sees; a video with several views counts as so many clips of a batch.
        batch: most clips in a batch; at least one video is.
        shard: which share.
        rows: of the split; all of them by default.
    """
    chosen = np.arange(len(split)) if rows is None else rows
    mine = chosen[evaluation_rows(len(chosen), shard)]
    requests = (evaluation_request_of(split, int(row), clip=clip) for row in mine)
    return in_batches(requests, max(1, batch // (clip.views[0] * clip.views[1])))


def in_batches(requests: Iterator[R], size: int) -> Iterator[list[R]]:
    """Lists of `size` requests; the last may be shorter."""
    while batch := list(islice(requests, size)):
        yield batch
