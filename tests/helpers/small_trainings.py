"""A training of seconds: its recipe, and a bank of discs."""

from pathlib import Path

import numpy as np

from mri_qpan.training import recipe
from mri_qpan.training.bank import Bank
from mri_qpan.training.recipe import Recipe

RECIPE = """
name = "tiny"
{init}
groups = ["disc"]
steps = {steps}
learning_rate = 3e-3
warm_up = 5
sizes = [[24, 20], [20, 24]]
pixels = 960
ratios = [0.3, 0.6]
supervision = 0.5
constraint = 0.01
constrained = 1
seed = 1

[network]
system = "pan+"
layers = 2
filters = 4
channels = 2
{bits}
"""


def load(folder: Path, steps: int = 6, init: str = "", bits: str = "") -> Recipe:
    """Write the recipe, as tiny.toml, and read it."""
    path = folder / "tiny.toml"
    path.write_text(RECIPE.format(steps=steps, init=init, bits=bits))
    return recipe.load(str(path))


def discs() -> Bank:
    """Twelve images, three of them to validate on."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:40j, -1:1:36j]
    images = []
    for _ in range(12):
        centre, radius = rng.uniform(-0.3, 0.3, 2), rng.uniform(0.2, 0.6)
        images.append(((x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2).astype(np.float32))
    return Bank(images, ["disc"] * 9 + ["disc/val"] * 3)
