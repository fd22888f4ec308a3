"""The order in which clips are seen: whole-set permutations, shards, and starting in the middle.

Step k of an epoch is made of the rows [k * B * W, (k + 1) * B * W) of one permutation, for B clips a step in each of W
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


def train_rows(
    rows: int, *, batch: int, accumulate: int = 1, seed: int, epoch: int, shard: Shard = WHOLE, start: int = 0
) -> np.ndarray:
    """The rows of each step of an epoch that are one shard's.

    What does not fill the last change of the weights is filled up with the first clips of the permutation, so every
    clip is seen in every epoch.

    Args:
        rows: how many clips there are, at least 1.
        batch: B, clips per step and shard.
        accumulate: steps for one change of the weights.
        seed: of the run.
        epoch: its number.
        shard: which share.
        start: the first step that is wanted.

    Returns:
        int64 (steps - start, B)
    """
    steps = steps_per_epoch(rows, batch=batch, accumulate=accumulate, shards=shard.count)
    order = np.resize(epoch_order(rows, seed=seed, epoch=epoch), steps * shard.count * batch)
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
    steps = train_rows(
        len(split),
        batch=settings.batch,
        accumulate=settings.accumulate,
        seed=settings.seed,
        epoch=epoch,
        shard=shard,
        start=start,
    )
    for rows in steps:
        yield [
            training_request(split, int(row), clip=recipe.clip, augment=recipe.augment, seed=settings.seed, epoch=epoch)
            for row in rows
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
