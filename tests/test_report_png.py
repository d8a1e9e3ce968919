"""The heat map as a picture."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ditc.tools.report_colours import STYLES
from ditc.tools.report_data import read_facts
from ditc.tools.report_png import heat_map_png

from . import reports
from .report_pages import rgb


def test_the_picture_has_a_cell_for_every_step_and_site(tmp_path: Path) -> None:
    facts = read_facts(reports.write_plan(tmp_path))
    image = Image.open(io.BytesIO(heat_map_png(facts))).convert("RGB")
    pixels = np.asarray(image)
    cell, top = 60, 158
    colours = {name: rgb(style.light) for name, style in STYLES.items()}
    left = int(np.argmax((pixels[top + 5] == colours["full"]).all(-1)))
    for step, row in enumerate(facts.methods):
        for number, method in enumerate(row):
            x, y = left + step * cell + 28, top + number * cell + 28
            assert tuple(pixels[y, x]) == colours[method]
    assert tuple(pixels[top + 28, left + 4 * cell + 28]) == (255, 255, 255)


def test_pictures_of_many_steps_stay_small(tmp_path: Path) -> None:
    facts = read_facts(reports.write_plan(tmp_path))
    many = replace(facts, methods=facts.methods * 1000)
    assert Image.open(io.BytesIO(heat_map_png(many))).size[0] < 4500
