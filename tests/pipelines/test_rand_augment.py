"""RandAugment: each operation as Pillow computes it, the same in all frames, and drawn from seed, epoch and clip alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from ssv2rt.core.recipes import Augment, Clip, Data
from ssv2rt.dataset.index import open_manifest
from ssv2rt.dataset.manifest import Split
from ssv2rt.pipelines.loader import ClipLoader
from ssv2rt.pipelines.rand_augment import apply_operations, draw_operations
from ssv2rt.pipelines.request_source import evaluation_request_of, training_request
from ssv2rt.pipelines.requests import GRAY, ClipRequest, Operation
from ssv2rt.video.crops import CropBox

FRAMES, HEIGHT, WIDTH = 3, 40, 56
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def split(tiny_set: Path) -> Split:
    return open_manifest(tiny_set).split("train")


def moving_clip() -> np.ndarray:
    """uint8 (T, H, W, 3): slopes of color that move, some noise, and values from 20 to 229."""
    rng = np.random.default_rng(0)
    t, y, x = np.meshgrid(np.arange(FRAMES), np.arange(HEIGHT), np.arange(WIDTH), indexing="ij")
    slopes = np.stack([2 * x + 9 * t, 3 * y + x, 120 + 60 * np.sin((x + y) / 7 + t)], -1)
    return np.clip(slopes + rng.normal(0, 8, slopes.shape), 20, 229).astype(np.uint8)


def asking(*operations: Operation) -> ClipRequest:
    frames, crop = np.zeros((1, FRAMES), np.int32), CropBox(0, 0, 1, 1)
    return ClipRequest("a", Path("a"), frames, (crop,), (1, 1), 1, operations=operations)


def ours(clip: np.ndarray, name: str, amount: float) -> np.ndarray:
    (changed,) = apply_operations(torch.from_numpy(clip)[None], [asking(Operation(name, amount))])
    return changed.numpy()


def pillow(clip: np.ndarray, name: str, amount: float) -> np.ndarray:
    """The same by Pillow: of all frames in one tall picture where the operation measures the picture, else frame by frame."""
    if name in ("auto-contrast", "equalize", "contrast"):
        whole = Image.fromarray(clip.reshape(-1, WIDTH, 3))
        return np.asarray(_pillow(whole, name, amount)).reshape(clip.shape)
    return np.stack([np.asarray(_pillow(Image.fromarray(frame), name, amount)) for frame in clip])


def _pillow(picture: Image.Image, name: str, amount: float) -> Image.Image:
    x, y = WIDTH / 2, HEIGHT / 2
    moves = {
        "shear x": (1, amount, -amount * y, 0, 1, 0),
        "shear y": (1, 0, 0, amount, 1, -amount * x),
        "translate x": (1, 0, amount * WIDTH, 0, 1, 0),
        "translate y": (1, 0, 0, 0, 1, amount * HEIGHT),
    }
    if name in moves:
        bilinear = Image.Resampling.BILINEAR
        return picture.transform(picture.size, Image.Transform.AFFINE, moves[name], bilinear, fillcolor=GRAY)
    enhancers = {
        "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "brightness": ImageEnhance.Brightness,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name in enhancers:
        return enhancers[name](picture).enhance(amount)
    return {
        "identity": lambda: picture,
        "auto-contrast": lambda: ImageOps.autocontrast(picture),
        "equalize": lambda: ImageOps.equalize(picture),
        "solarize": lambda: ImageOps.solarize(picture, int(amount)),
        "posterize": lambda: ImageOps.posterize(picture, int(amount)),
        "rotate": lambda: picture.rotate(amount, Image.Resampling.BILINEAR, fillcolor=GRAY),
    }[name]()


AMOUNTS: dict[str, tuple[float, ...]] = {
    "identity": (0,),
    "auto-contrast": (0,),
    "equalize": (0,),
    "solarize": (0, 26, 128, 256),
    "posterize": (4, 6, 8),
    **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), (0.1, 0.6, 1.0, 1.5, 1.9)),
    "rotate": (-30, -7.5, 12, 30),
    **dict.fromkeys(("shear x", "shear y"), (-0.3, -0.11, 0.19, 0.3)),
    **dict.fromkeys(("translate x", "translate y"), (-0.45, -0.13, 0.07, 0.45)),
}


@pytest.mark.parametrize("name", AMOUNTS)
def test_each_operation_is_that_of_pillow(name: str) -> None:
    clip = moving_clip()
    for amount in AMOUNTS[name]:
        expected, found = pillow(clip, name, amount).astype(int), ours(clip, name, amount).astype(int)
        # Pillow cuts fractions off where we round, and in two steps of a sharpened picture.
        assert np.abs(found - expected).max() <= 1, amount
    if name != "identity":
        assert np.abs(ours(clip, name, AMOUNTS[name][0]).astype(int) - clip).mean() > 2  # it changes something


@pytest.mark.parametrize("value", [0, 77, 255])
def test_clips_of_one_color_survive_all_operations(value: int) -> None:
    """Nothing divides by their contrast of 0."""
    clip = np.full((FRAMES, HEIGHT, WIDTH, 3), value, np.uint8)
    for name in ("auto-contrast", "equalize", "color", "contrast", "sharpness"):
        assert np.array_equal(ours(clip, name, 1.9), clip), name


def test_magnitudes_set_the_amounts_and_signs_are_random() -> None:
    drawn = [o for seed in range(300) for o in draw_operations(3, 10.0, np.random.default_rng(seed))]
    counts = Counter(operation.name for operation in drawn)
    assert counts.keys() == AMOUNTS.keys() and all(30 < count < 110 for count in counts.values())  # 64 each
    for name in AMOUNTS:
        amounts = {operation.amount for operation in drawn if operation.name == name}
        strongest = {"posterize": [4], "solarize": [0]}.get(name, sorted({AMOUNTS[name][0], AMOUNTS[name][-1]}))
        assert sorted(amounts) == pytest.approx(strongest), name
    clip = moving_clip()
    for operation in {o for seed in range(300) for o in draw_operations(3, 0.0, np.random.default_rng(seed))}:
        changed = ours(clip, *operation)
        if operation.name not in ("auto-contrast", "equalize"):  # which have no strength
            assert np.array_equal(changed, clip), operation


def test_draws_follow_from_seed_epoch_and_clip_and_leave_the_others_alone(split: Split) -> None:
    def draw(row: int, *, seed: int = 1, epoch: int = 2, layers: int = 3) -> ClipRequest:
        return training_request(
            split, row, clip=Clip(frames=4), augment=Augment(rand_layers=layers), seed=seed, epoch=epoch
        )

    base = draw(0)
    assert len(base.operations) == 3 and base.operations == draw(0).operations
    assert len({draw(0).operations, draw(1).operations, draw(0, seed=2).operations, draw(0, epoch=3).operations}) == 4
    without = draw(0, layers=0)
    assert without.operations == () and Augment().rand_layers == 0
    assert (without.crops, without.color, without.flip) == (base.crops, base.color, base.flip)
    assert np.array_equal(without.frames, base.frames)


def test_clips_of_both_decoders_have_the_operations_of_their_requests(split: Split) -> None:
    """The same in all frames: a still clip stays still. And each clip has its own."""
    clip = Clip(frames=4, size=32, center_crop=1.0)
    plain = [evaluation_request_of(split, row, clip=clip) for row in range(3)]
    plain = [replace(request, frames=np.zeros_like(request.frames)) for request in plain]
    chains = [
        (Operation("rotate", 20.0), Operation("equalize", 0.0), Operation("translate x", 0.2)),
        (),
        (Operation("sharpness", 1.9), Operation("shear y", -0.3), Operation("contrast", 0.3)),
    ]
    asked = [replace(request, operations=chain) for request, chain in zip(plain, chains, strict=True)]
    for decoder in ("pyav", "dali"):
        loader = ClipLoader(clip=clip, batch=4, data=Data(decoder=decoder, threads=2), device=CPU)  # type: ignore[arg-type]
        before, after = (batch.clips for batch in loader.batches([plain, asked]))
        assert torch.equal(before[1], after[1])
        for number in (0, 2):
            assert torch.equal(after[number], after[number][:1].expand_as(after[number]))
            expected = before[number].numpy()
            for operation in chains[number]:
                expected = ours(expected, *operation)
            assert np.array_equal(after[number].numpy(), expected) and not torch.equal(before[number], after[number])


@pytest.mark.gpu
def test_a_gpu_gives_the_same_clips() -> None:
    clips = torch.from_numpy(moving_clip())[None].expand(40, -1, -1, -1, -1)
    requests = [asking(*draw_operations(3, 9.0, np.random.default_rng(seed))) for seed in range(len(clips))]
    torch.use_deterministic_algorithms(True)  # which none of the operations lacks
    try:
        here, there = apply_operations(clips, requests), apply_operations(clips.cuda(), requests).cpu()
    finally:
        torch.use_deterministic_algorithms(False)
    # A pixel that is rounded differently may cross a threshold in the next operation.
    assert ((here.int() - there.int()).abs() > 1).float().mean() < 1e-3
