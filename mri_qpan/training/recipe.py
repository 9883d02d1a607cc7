"""Recipes: everything that defines a training but its data's place and its device."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mri_qpan.errors import InputError, OptionError
from mri_qpan.networks import Config, named_config

LIMITS = "noise goes from 0 to 0.5, enlarge from 1 to 2"


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
    OptionError
        If no shipped recipe has the name.
    InputError
        If the file does not exist, is no TOML, or a field is missing, unknown or impossible.
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
        raise OptionError(
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
    lists = {name: _list(values, name) for name in ("groups", "sizes", "ratios")}
    lists |= {name: _list(values, name, []) for name in ("spokes", "shares", "validation")}
    _require(len(lists["ratios"]) == 2, "ratios: [lowest, highest]")
    _require(
        all(isinstance(size, list) and len(size) == 2 for size in lists["sizes"]), "sizes: [[y, x], ...]"
    )
    plan = Recipe(
        network=config,
        published=values.pop("published", False),
        init=values.pop("init", None) or None,
        groups=tuple(lists["groups"]),
        sizes=tuple((y, x) for y, x in lists["sizes"]),
        ratios=(_number(lists["ratios"][0]), _number(lists["ratios"][1])),
        spokes=tuple(lists["spokes"]),
        shares=tuple(_number(share) for share in lists["shares"]),
        validation=tuple(lists["validation"]),
        **values,
    )
    _check(plan)
    return plan


def _check(plan: Recipe) -> None:
    """Raise `ValueError` if a field is of a wrong type or impossible, or two contradict each other."""
    for name in ("steps", "warm_up", "pixels", "seed", "constrained"):
        _require(
            _whole(getattr(plan, name), name in ("steps", "warm_up", "pixels")), f"{name}: a whole number"
        )
    name = plan.name
    plain = isinstance(name, str) and name != "" and name == Path(name).name and not name.startswith(".")
    _require(plain, "name: that of a file, without its suffix")
    _require(isinstance(plan.published, bool), "published: true or false")
    if plan.published != (plan.network.channels == 1):
        raise ValueError("a network of one channel, and none but it, trains on the published experiment")
    _require(0 < _number(plan.learning_rate) < 1, "learning_rate: above zero")
    _require(0 < plan.ratios[0] <= plan.ratios[1] <= 1, "ratios: [lowest, highest], above 0 and up to 1")
    _require(bool(plan.groups) and len(set(plan.groups)) == len(plan.groups), "groups: each once")
    _require(all(isinstance(g, str) for g in plan.groups + plan.validation), "groups, validation: names")
    sizes = [n for size in plan.sizes for n in size]
    _require(bool(sizes) and all(_whole(n) and n >= 16 for n in sizes), "sizes: [y, x], each 16 or more")
    _require(all(_whole(n, True) for n in plan.spokes), "spokes: whole numbers above zero")
    _require(0 <= _number(plan.noise) <= 0.5 and 1 <= _number(plan.enlarge) <= 2, LIMITS)
    for name in ("supervision", "distillation", "turned", "extracted"):
        _require(0 <= _number(getattr(plan, name)) <= 1, f"{name}: a share, from 0 to 1")
    _require(_number(plan.constraint) >= 0, "constraint: no less than 0")
    if not plan.published and (plan.noise, plan.enlarge, plan.turned, plan.extracted) != (0, 1, 0, 0):
        raise ValueError("noise, enlarge, turned and extracted are the published experiment's")
    if plan.shares and (len(plan.shares) != len(plan.groups) or not min(plan.shares) > 0):
        raise ValueError("shares: one above zero for each of groups")
    if set(plan.validation) & set(plan.groups):
        raise ValueError("validation: a group that is trained on")


def _list(values: dict[str, Any], name: str, default: list[Any] | None = None) -> list[Any]:
    """Take a list out of `values`; without a default it must be there."""
    found = values.pop(name) if default is None else values.pop(name, default)
    _require(isinstance(found, list), f"{name}: a list")
    return list(found)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _whole(value: Any, positive: bool = False) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= int(positive)


def _number(value: Any) -> float:
    """Return a number; NaN, which no comparison holds for, in the place of anything else."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
