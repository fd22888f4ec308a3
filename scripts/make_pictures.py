#!/usr/bin/env python3
"""Makes the pictures of the documentation anew, for light and dark pages, from what the program draws.

    python scripts/make_pictures.py        # from a checkout; a quarter of an hour on 2 cores; needs chromium with chromedriver

In the working directory it takes `runs/latest` of the demo and `comparison/`, and makes what is not there.
docs/how-it-works.svg is drawn by hand.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

DOCS = Path(__file__).resolve().parents[1] / "docs"
DARK_SVG = "<style>@media (prefers-color-scheme: dark) { svg { filter: invert(0.9) hue-rotate(180deg) } }</style>"
"""Turns white into nearly black and keeps hues."""
WINDOW = (1200, 900)
"""Pixels of a screenshot."""
WIDTH = 1000
NIGHT = 27
"""Of 255: what takes the place of white on a dark page."""


def ssv2rt(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "ssv2rt", *map(str, arguments)], check=True)


def copy_figure(source: Path, name: str) -> None:
    """Copies a figure of Matplotlib, which then follows the colors of the page. Its metadata has a date, and is left out."""
    text = source.read_text(encoding="utf-8")
    before, after = text.index(" <metadata>"), text.index("</metadata>") + len("</metadata>\n")
    (DOCS / name).write_text(f"{text[:before]} {DARK_SVG}\n{text[after:]}", encoding="utf-8")


def save_small(picture: Image.Image, name: str) -> None:
    """With 256 colors, at most as wide as a page."""
    picture.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
    picture.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT).save(DOCS / name, optimize=True)


def preview() -> None:
    """A contact sheet, and the same with captions in white on nearly black."""
    from ssv2rt.core.recipe_files import load_recipe
    from ssv2rt.dataset.prepare import synthetic_set

    spec = load_recipe("demo").data.synthetic
    assert spec
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "preview.png"
        settings = ("--set", "augment.grayscale=0.3", "--set", "augment.erase=0.5")
        ssv2rt("preview", synthetic_set(spec), "--recipe", "demo", "--clips", 2, *settings, "--out", out)
        light = np.asarray(Image.open(out).convert("RGB"))
    save_small(Image.fromarray(light), "preview.png")
    dark, white = light.copy(), (light > 230).all(2)
    captions = white.mean(1) > 0.3
    dark[captions] = 255 - (1 - NIGHT / 255) * dark[captions]
    between = white[~captions].mean(0) > 0.9
    dark[np.ix_(~captions, between)] = NIGHT
    save_small(Image.fromarray(dark), "preview-dark.png")


def report() -> None:
    """Screenshots of the report of the run, on a light and on a dark page."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program:
        options.binary_location = program
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        ssv2rt("report", "--out", page, "--clips", 24)
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver") or ""))
        try:
            for scheme, name in (("light", "report.png"), ("dark", "report-dark.png")):
                features = [{"name": "prefers-color-scheme", "value": scheme}]
                browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
                size = {"width": WINDOW[0], "height": WINDOW[1], "deviceScaleFactor": 1, "mobile": False}
                browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                browser.get(page.as_uri())
                shot = Path(folder) / name
                browser.save_screenshot(str(shot))
                save_small(Image.open(shot), name)
        finally:
            browser.quit()


def main() -> None:
    if not Path("runs/latest").exists():
        ssv2rt("train")
    if not Path("comparison/comparison.svg").exists():
        ssv2rt("compare")
    copy_figure(Path("runs/latest/summary/curves.svg"), "curves.svg")
    copy_figure(Path("comparison/comparison.svg"), "comparison.svg")
    preview()
    report()


if __name__ == "__main__":
    main()
