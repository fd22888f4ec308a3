"""Draws synthetic clips: a random scene with one of five motions, each of which is another class when time is reversed.

Coordinates: the picture is 1 high and W/H wide, with its center at (0, 0) and y downwards. Time runs from -1 to 1.
Dimensions: T frames, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray

PAIRS = (
    ("Pushing something from left to right", "Pushing something from right to left"),
    ("Moving something up", "Moving something down"),
    ("Approaching something with your camera", "Moving away from something with your camera"),
    ("Turning the camera left while filming something", "Turning the camera right while filming something"),
    ("Covering something with something", "Uncovering something"),
)
"""Pairs of SSv2 labels that are time reversals of each other. A scene shows the first; reversed, it shows the second."""

_TEXTURE = 96  # width and height of the texture tiles, in texels


@dataclass(frozen=True)
class _Object:
    """A textured, rounded, rotated box. Distances are in picture heights."""

    center: Array  # (T, 2)
    size: Array  # (T, 2) half width, half height
    angle: float
    roundness: float
    texture: Array  # (_TEXTURE, _TEXTURE, 3)


def draw_clip(rng: np.random.Generator, pair: int, frames: int, width: int, height: int) -> Array:
    """Draws a clip of the class `PAIRS[pair][0]`.

    Args:
        rng: random source for background, objects, speed, light, noise and camera jitter.
        pair: index into `PAIRS`.
        frames: T.
        width: W, pixels.
        height: H, pixels.

    Returns:
        uint8 RGB (T, H, W, 3).
    """
    half_width = width / height / 2
    time = _motion_curve(rng, frames)
    jitter = _smooth_noise(rng, frames, 2) * rng.uniform(0.0, 0.008)
    shift, zoom = jitter, np.ones(frames)
    background = _texture(rng, rng.uniform(0.15, 0.6), detail=rng.uniform(0.3, 1.0), contrast=rng.uniform(0.3, 0.9))
    objects = [_static_object(rng, frames, half_width) for _ in range(rng.integers(0, 3))]

    main_size = rng.uniform(0.10, 0.19, 2)
    main_object = _random_object(rng, frames, rng.uniform(-0.15, 0.15, 2) * (half_width * 2, 1.0), main_size)
    kind = ("push", "raise", "approach", "turn", "cover")[pair]
    reach = rng.uniform(0.55, 0.9)
    if kind == "push":
        main_object.center[:, 0] = time * (half_width - 0.5 * main_size[0]) * reach
        objects += [main_object, _hand(rng, main_object, beside=True)]
    elif kind == "raise":
        main_object.center[:, 1] = -time * 0.4 * reach
        objects += [main_object, _hand(rng, main_object, beside=False)]
    elif kind == "approach":
        zoom = np.exp(time * rng.uniform(0.3, 0.55))
        objects.append(main_object)
    elif kind == "turn":
        # The camera turns left, so the whole picture moves to the right.
        shift = shift + np.stack([time * half_width * reach * 0.8, np.zeros(frames)], axis=1)
        objects.append(main_object)
    else:
        direction = rng.uniform(0, 2 * np.pi)
        away = np.array([np.cos(direction), np.sin(direction)]) * (0.62 + main_size.max())
        cover = _random_object(rng, frames, main_object.center[0], main_size * rng.uniform(1.15, 1.5))
        # The cover arrives at time 0.6 and stays.
        cover.center[:] += away * np.clip((0.6 - time) / 1.6, 0, 1)[:, None]
        objects += [main_object, cover]

    clip = _render(background, objects, shift, zoom, width, height)
    light = 1 + _smooth_noise(rng, frames, 1) * rng.uniform(0, 0.05)
    noise = rng.standard_normal((8, height, width, 1), dtype=np.float32) * rng.uniform(0.0, 0.015)
    clip = clip * light[:, :, None, None].astype(np.float32) + noise[rng.integers(0, 8, frames)]
    return (np.clip(clip, 0, 1) * 255).astype(np.uint8)


def _motion_curve(rng: np.random.Generator, frames: int) -> Array:
    """float64 (T,): rises monotonically from -1 to 1, with a random ease and a rest at both ends."""
    begin, end = rng.uniform(0.0, 0.15), rng.uniform(0.85, 1.0)
    x = np.clip((np.linspace(0, 1, frames) - begin) / (end - begin), 0, 1)
    ease = rng.uniform(0, 1)
    return 2 * ((1 - ease) * x + ease * (3 * x**2 - 2 * x**3)) - 1


def _smooth_noise(rng: np.random.Generator, frames: int, channels: int) -> Array:
    """float64 (T, channels): noise that varies slowly in time, of about unit size."""
    knots = rng.standard_normal((max(2, frames // 4), channels))
    at = np.linspace(0, len(knots) - 1, frames)
    return np.stack([np.interp(at, np.arange(len(knots)), knots[:, c]) for c in range(channels)], axis=1)


def _texture(rng: np.random.Generator, level: float, detail: float, contrast: float = 1.0) -> Array:
    """float32 (_TEXTURE, _TEXTURE, 3): a seamlessly repeating tile with a base color and noise of several octaves."""
    base = np.clip(level + rng.normal(0, 0.18, 3), 0.05, 0.95)
    tile = np.zeros((_TEXTURE, _TEXTURE, 3), np.float32)
    for cells, weight in ((3, 0.5), (8, 0.3), (24, 0.25 * detail)):
        grid = rng.standard_normal((cells, cells, 3)) * [0.6, 0.6, 0.6] + rng.standard_normal((cells, cells, 1))
        at = np.arange(_TEXTURE) * cells / _TEXTURE
        low = at.astype(int)
        mix = (at - low)[:, None, None]
        rows = grid[low] * (1 - mix) + grid[(low + 1) % cells] * mix
        mix = (at - low)[None, :, None]
        tile += (
            weight * 0.22 * contrast * (rows[:, low] * (1 - mix) + rows[:, (low + 1) % cells] * mix).astype(np.float32)
        )
    return np.clip(tile + base, 0, 1).astype(np.float32)


def _random_object(rng: np.random.Generator, frames: int, center: Array, size: Array) -> _Object:
    return _Object(
        center=np.tile(center, (frames, 1)),
        size=np.tile(size, (frames, 1)),
        angle=rng.uniform(0, np.pi),
        roundness=rng.uniform(0.1, 1.0),
        texture=_texture(rng, rng.uniform(0.1, 0.95), detail=rng.uniform(0.2, 1.5)),
    )


def _static_object(rng: np.random.Generator, frames: int, half_width: float) -> _Object:
    return _random_object(rng, frames, rng.uniform(-1, 1, 2) * (half_width, 0.5), rng.uniform(0.04, 0.16, 2))


def _hand(rng: np.random.Generator, held: _Object, beside: bool) -> _Object:
    """A skin-colored arm that moves with `held`, on a random side that does not reveal the direction."""
    frames = len(held.center)
    side = rng.choice([-1.0, 1.0])
    radius = held.size[0].max()
    if beside:  # the arm comes from below, the hand is beside the object
        offset, size = np.array([side * (radius + 0.03), 0.42]), np.array([0.07, 0.5])
    else:  # the arm comes from the side
        offset, size = np.array([side * (radius + 0.55), 0.05]), np.array([0.6, 0.07])
    skin = np.array([0.85, 0.62, 0.5]) * rng.uniform(0.35, 1.1)
    texture = np.clip(skin + (_texture(rng, 0.5, 0.3) - 0.5) * 0.15, 0, 1).astype(np.float32)
    return _Object(held.center + offset, np.tile(size, (frames, 1)), 0.0, 1.0, texture)


def _render(background: Array, objects: list[_Object], shift: Array, zoom: Array, width: int, height: int) -> Array:
    """Renders to float32 (T, H, W, 3) in 0..1. A world point p appears at p * zoom + shift."""
    frames = len(shift)
    clip = np.empty((frames, height, width, 3), np.float32)
    y0, x0 = np.meshgrid(
        (np.arange(height, dtype=np.float32) + 0.5) / height - 0.5,
        ((np.arange(width, dtype=np.float32) + 0.5) / width - 0.5) * np.float32(width / height),
        indexing="ij",
    )
    for t in range(frames):
        x = (x0 - np.float32(shift[t, 0])) / np.float32(zoom[t])
        y = (y0 - np.float32(shift[t, 1])) / np.float32(zoom[t])
        picture = _sample(background, x, y, scale=70.0)
        edge = np.float32(height * zoom[t])  # one pixel of anti-aliasing
        for obj in objects:
            _paint(picture, obj, t, x, y, edge)
        clip[t] = picture
    return clip


def _paint(picture: Array, obj: _Object, t: int, x: Array, y: Array, edge: np.float32) -> None:
    cos, sin = np.float32(np.cos(obj.angle)), np.float32(np.sin(obj.angle))
    radius = float(np.hypot(*obj.size[t])) + 2 / float(edge)
    cx, cy = (np.float32(c) for c in obj.center[t])
    # x grows along columns and y along rows, so the object's bounding box is a slice of the picture.
    columns = np.flatnonzero(np.abs(x[0] - cx) < radius)
    rows = np.flatnonzero(np.abs(y[:, 0] - cy) < radius)
    if not columns.size or not rows.size:
        return
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    u = (x[box] - cx) * cos + (y[box] - cy) * sin
    v = (y[box] - cy) * cos - (x[box] - cx) * sin
    # Signed distance to a rounded box (negative inside).
    half = obj.size[t].astype(np.float32)
    corner = np.float32(obj.roundness * half.min())
    du, dv = np.abs(u) - (half[0] - corner), np.abs(v) - (half[1] - corner)
    distance = np.hypot(np.maximum(du, 0), np.maximum(dv, 0)) + np.minimum(np.maximum(du, dv), 0) - corner
    cover = np.clip(0.5 - distance * edge, 0, 1)[..., None]
    shade = 1 - 0.35 * np.clip(1 + distance / half.min(), 0, 1)[..., None] ** 2
    paint = _sample(obj.texture, u, v, scale=160.0) * shade
    picture[box] += (paint - picture[box]) * cover


def _sample(texture: Array, x: Array, y: Array, scale: float) -> Array:
    """Samples a repeating texture at (x, y) with bilinear interpolation. `scale` is in texels per picture height."""
    u, v = x * np.float32(scale) + 1000 * _TEXTURE, y * np.float32(scale) + 1000 * _TEXTURE
    left, top = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    fu, fv = (u - left)[..., None].astype(np.float32), (v - top)[..., None].astype(np.float32)
    left, top = left % _TEXTURE, top % _TEXTURE
    right, bottom = (left + 1) % _TEXTURE, (top + 1) % _TEXTURE
    flat = texture.reshape(-1, 3)
    above = flat[top * _TEXTURE + left] * (1 - fu) + flat[top * _TEXTURE + right] * fu
    below = flat[bottom * _TEXTURE + left] * (1 - fu) + flat[bottom * _TEXTURE + right] * fu
    return above * (1 - fv) + below * fv
