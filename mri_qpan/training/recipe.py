"""Recipes: everything that defines a training but its data's place and its device."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mri_qpan.errors import InputError
from mri_qpan.networks import Config, named_config


@dataclass(frozen=True)
class Recipe:
    """One training.

    Attributes
    ----------
    name
        Of the model that comes out.
    network
        Its architecture.
    init
        Name of the recipe whose model it starts from, or None to start from random weights (in a file "",
        where the recipe that it is like starts from a model).
    groups
        Data sets (folder names) to train on.
    steps
        Training steps.
    learning_rate
        Highest, after `warm_up` steps; cosine to a hundredth of it.
    warm_up
        Steps of linear warm-up.
    sizes
        Matrices (y, x) to draw from.
    pixels
        Pixels a batch.
    ratios
        Lowest and highest sampling ratio.
    published
        Train on the published experiment (real images, pseudo-radial masks), for a network of one channel.
    supervision
        Weight of the last layer but one in the loss's first term, squared for the one before, and so on. The
        seed has 0, but then early layers leave the data, and with several coils a gradient step a layer does
        not bring them back.
    constraint
        Weight of the loss's second term (Eq. 9).
    constrained
        Layers in which that term is evaluated at each step, drawn at random and weighted up: the mean is
        Eq. 9's sum at a fraction of its cost.
    seed
        Of weights and data.
    distillation
        Share, in the error of the last image, of its difference from what the model that the training starts
        from makes of the same samples, in the place of the target.
    spokes
        Published experiment: numbers of spokes of the masks to draw from, all from angle 0, as published
        networks are trained on the very masks that they are tested on. Empty: any ratio, turned at random.
    shares
        Of `groups`, how often each is drawn. Empty: by the square root of their numbers of images.
    noise
        Published experiment: largest standard deviation of the noise that `views.noisy` adds to images, of
        their maximum.
    enlarge
        Published experiment: most that an image smaller than the matrix is enlarged towards it.
    turned, extracted
        Published experiment: shares of the images turned by interpolation and of those cut to the brain.
        With the latter, validation has each of its images as it is and as the brain alone.
    validation
        Groups to validate on, none of them trained on. Empty: all in the bank that end in "/val".
    """

    name: str
    network: Config
    init: str | None
    groups: tuple[str, ...]
    steps: int
    learning_rate: float
    warm_up: int
    sizes: tuple[tuple[int, int], ...]
    pixels: int
    ratios: tuple[float, float]
    published: bool
    supervision: float
    constraint: float
    constrained: int
    seed: int
    distillation: float = 0.0
    spokes: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()
    noise: float = 0.0
    enlarge: float = 1.0
    turned: float = 0.0
    extracted: float = 0.0
    validation: tuple[str, ...] = ()


def shipped() -> list[str]:
    """Return the names of the recipes in the package."""
    folder = resources.files("mri_qpan.training") / "recipes"
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml"))


def load(name: str) -> Recipe:
    """Read a recipe by name, or from a .toml file.

    A file with `like = NAME` holds only what differs from that shipped recipe.

    Raises
    ------
    InputError
        If it does not exist, is no TOML, or a field is missing, unknown or impossible.
    """
    try:
        return _parse(_values(name))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"recipe {name}: {error}") from error


def _values(name: str) -> dict[str, Any]:
    """Return a recipe's fields, those of the recipe that it is like included."""
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"{name}: no such recipe file")
        text = path.read_text()
    elif name in shipped():
        text = (resources.files("mri_qpan.training") / "recipes" / f"{name}.toml").read_text()
    else:
        raise InputError(
            f"no recipe called {name!r}: choose from {', '.join(shipped())} or give a .toml file"
        )
    values = tomllib.loads(text)
    if "like" not in values:
        return values
    model = values.pop("like")
    if model not in shipped():
        raise ValueError(f"like = {model!r} is no shipped recipe")
    base = _values(model)
    return base | values | {"network": base["network"] | values.get("network", {})}


def _parse(values: dict[str, Any]) -> Recipe:
    network = dict(values.pop("network"))
    system = network.pop("system")
    config = named_config(system, **network)
    published = values.pop("published", False)
    if published != (config.channels == 1):
        raise ValueError("a network of one channel, and none but it, trains on the published experiment")
    noise, enlarge = values.get("noise", 0.0), values.get("enlarge", 1.0)
    if not (0 <= noise <= 0.5 and 1 <= enlarge <= 2):
        raise ValueError("noise goes from 0 to 0.5, enlarge from 1 to 2")
    turned, extracted = values.get("turned", 0.0), values.get("extracted", 0.0)
    if not (0 <= turned <= 1 and 0 <= extracted <= 1):
        raise ValueError("turned and extracted are shares, from 0 to 1")
    if not published and (noise, enlarge, turned, extracted) != (0, 1, 0, 0):
        raise ValueError("noise, enlarge, turned and extracted are the published experiment's")
    shares = tuple(float(share) for share in values.pop("shares", ()))
    if shares and (len(shares) != len(values["groups"]) or min(shares) <= 0):
        raise ValueError("shares: one above zero for each of groups")
    validation = tuple(values.pop("validation", ()))
    if set(validation) & set(values["groups"]):
        raise ValueError("validation: a group that is trained on")
    return Recipe(
        network=config,
        published=published,
        init=values.pop("init", None) or None,
        groups=tuple(values.pop("groups")),
        sizes=tuple((int(y), int(x)) for y, x in values.pop("sizes")),
        ratios=(float(values["ratios"][0]), float(values.pop("ratios")[1])),
        spokes=tuple(int(n) for n in values.pop("spokes", ())),
        shares=shares,
        validation=validation,
        **values,
    )
