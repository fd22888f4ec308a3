"""Film strips: the frames of a clip side by side in one JPEG, which the page shows one after the other."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ssv2rt.models.grad_cam import HEAT, opacity

FRAMES, SIDE = 8, 96
"""Frames of a strip, and their height and width in pixels."""
BUDGET = 16_000_000
"""Bytes of all strips of a page, before they are written as text: the page stays below 25 MB."""


@dataclass
class Strips:
    """Makes strips until the budget of a page is spent."""

    left: int = BUDGET
    refused: int = field(default=0)
    """Strips that did not fit."""

    def of(self, frames: np.ndarray, heat: np.ndarray | None = None) -> dict[str, object] | None:
        """The strip of a clip, as the page's script takes it; None if the budget is spent.

        Args:
            frames: uint8 RGB (T, H, W, 3).
            heat: 0 to 1, (T, H, W): what Grad-CAM gives, as a second strip that is laid over the first.
        """
        chosen = np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int)
        small = [Image.fromarray(frames[number]).resize((SIDE, SIDE), Image.Resampling.BILINEAR) for number in chosen]
        encoded = [_jpeg(small)]
        if heat is not None:
            encoded.append(_png([_colored(heat[number]).resize((SIDE, SIDE)) for number in chosen]))
        size = sum(map(len, encoded))
        if size > self.left:
            self.refused += 1
            return None
        self.left -= size
        kinds = ("jpeg", "png")
        images = [
            f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
            for kind, content in zip(kinds, encoded, strict=False)
        ]
        return {"frames": len(chosen), "image": images[0], "heat": images[1] if heat is not None else None}


def _side_by_side(pictures: list[Image.Image]) -> Image.Image:
    strip = Image.new(pictures[0].mode, (SIDE * len(pictures), SIDE))
    for number, picture in enumerate(pictures):
        strip.paste(picture, (SIDE * number, 0))
    return strip


def _jpeg(pictures: list[Image.Image]) -> bytes:
    content = io.BytesIO()
    _side_by_side(pictures).save(content, "JPEG", quality=72)
    return content.getvalue()


def _png(pictures: list[Image.Image]) -> bytes:
    content = io.BytesIO()
    _side_by_side(pictures).quantize(64).save(content, "PNG", optimize=True)
    return content.getvalue()


def _colored(heat: np.ndarray) -> Image.Image:
    """An overlay alone, which is the more opaque the larger the heat is."""
    alpha = (255 * opacity(heat)).astype(np.uint8)
    return Image.fromarray(np.stack([*(np.full_like(alpha, value) for value in HEAT), alpha], -1), "RGBA")
