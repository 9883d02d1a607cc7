"""What defines a network, as it stands in a model file's header."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from mri_qpan.penalties import PENALTIES
from mri_qpan.quantize import MAX_BITS

SYSTEMS = {
    "pan": ("pan", PENALTIES),
    "pan+": ("pan+", PENALTIES),
    "ista-net": ("pan", ("l1",)),
    "ista-net+": ("pan+", ("l1",)),
}
"""Published systems by name: their layer and their penalties (ISTA-Net is PAN with l1 alone)."""

ADMM_LAYERS = ("admm-net", "admm-csnet")

LATER = {"floor", "shares", "estimator", "exact"}
"""Fields that older model files lack; their networks have the defaults."""


@dataclass(frozen=True)
class NetworkConfig:
    """Architecture of an unfolded network.

    Attributes
    ----------
    layer
        "pan" (Eq. 8) or "pan+" (Eq. 11).
    penalties
        Which proximal operators are averaged: any of "l1", "mcp", "scad".
    layers
        Number of unfolded iterations.
    filters
        Feature maps n_f.
    channels
        2 for complex images (real, imaginary), 1 for the published real-valued experiment.
    bits
        K-bit weights (1 to 4), or None for full precision.
    scale_per
        One quantizer scale a "tensor" (the seed) or an output "filter".
    threshold
        Start value of every lambda, or one for each of `penalties`.
    gamma, a
        Start values of MCP's and SCAD's shapes.
    step
        Start value of rho; with `consistency`, of mu.
    start
        Steps of CG-SENSE that make the first image; 0 starts from A^H y.
    consistency
        0: a layer begins with the published gradient step. n: it ends with n conjugate-gradient steps on
        (A^H A + mu) x = A^H y + mu z from its own result z, with mu learned.
    carry
        Hand a layer's features, before G, to the next layer, which adds them, times a learned gate a
        feature, to its D r (PAN+ only).
    adaptive
        Let mu and the thresholds follow how far an image's layers leave its data, and mu how badly the coils
        condition them, by learned powers (with `consistency` only): a noisy measurement then gets less trust
        and larger thresholds than a clean one.
    floor
        Give the magnitude of the last image the noise floor that a fully sampled one has (with `consistency`
        and complex images only; see `networks.floor`).
    shares
        Weights alpha of the averaged proximal operators: "equal", or "learned" in every layer.
    estimator
        Gradient of the quantizer: "identity" passes it on unchanged (the seed), "clipped" only where the
        weight lies within the levels.
    exact
        End with x + A^H (y - A x). Where A^H A is a projection and the data are free of noise, as in the
        published experiment alone, that puts the measured samples back as they are and cannot add error.
    """

    layer: str = "pan+"
    penalties: tuple[str, ...] = PENALTIES
    layers: int = 11
    filters: int = 32
    channels: int = 2
    bits: int | None = None
    scale_per: str = "filter"
    threshold: float | tuple[float, ...] = 0.01
    gamma: float = 2.0
    a: float = 3.7
    step: float = 1.0
    start: int = 0
    consistency: int = 0
    carry: bool = False
    adaptive: bool = False
    floor: bool = False
    shares: str = "equal"
    estimator: str = "identity"
    exact: bool = False

    def __post_init__(self) -> None:
        """Reject what no network can be built from.

        Raises
        ------
        ValueError
            Naming the field and what it may be.
        """
        checks = {
            "layer": self.layer in ("pan", "pan+"),
            "penalties": bool(self.penalties)
            and len(set(self.penalties)) == len(self.penalties)
            and set(self.penalties) <= set(PENALTIES),
            "layers": _whole(self.layers, 1, 100),
            "filters": _whole(self.filters, 1, 1024),
            "channels": self.channels in (1, 2),
            "bits": self.bits is None or _whole(self.bits, 1, MAX_BITS),
            "scale_per": self.scale_per in ("tensor", "filter"),
            "threshold": len(self.thresholds) == len(self.penalties)
            and all(start > 0 for start in self.thresholds),
            "gamma": self.gamma > 1,
            "a": self.a > 2,
            "step": self.step > 0,
            "start": _whole(self.start, 0, 100),
            "consistency": _whole(self.consistency, 0, 100),
            "adaptive": isinstance(self.adaptive, bool) and not (self.adaptive and not self.consistency),
            "floor": isinstance(self.floor, bool)
            and not (self.floor and (not self.consistency or self.channels == 1)),
            "carry": isinstance(self.carry, bool) and not (self.carry and self.layer == "pan"),
            "shares": self.shares in ("equal", "learned"),
            "estimator": self.estimator in ("identity", "clipped"),
            "exact": isinstance(self.exact, bool) and not (self.exact and self.channels == 2),
        }
        _check(self, checks)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Start values of the lambdas, one for each of `penalties`."""
        start = self.threshold
        return start if isinstance(start, tuple) else (start,) * len(self.penalties)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class ADMMConfig:
    """Architecture of ADMM-Net or ADMM-CSNet.

    Attributes
    ----------
    layer
        "admm-net": one auxiliary variable a filter, z_l = D_l x. "admm-csnet", its general form: one for the
        image itself, z = x, denoised by filters.
    layers
        Number of stages; a last reconstruction follows them.
    filters
        Filters a stage (3x3).
    channels
        2 for complex images, whose parts are filtered alike, 1 for the published real-valued experiment.
    points
        Control points of each piecewise linear function, spread evenly over [-1, 1].
    threshold
        Soft threshold that those functions start as.
    penalty
        Start value of every rho.
    solve
        Conjugate-gradient steps that a reconstruction takes from the image before, where it takes any.
    """

    layer: str = "admm-net"
    layers: int = 15
    filters: int = 8
    channels: int = 2
    points: int = 101
    threshold: float = 0.01
    penalty: float = 0.1
    solve: int = 6

    def __post_init__(self) -> None:
        """Reject what no network can be built from.

        Raises
        ------
        ValueError
            Naming the field and what it may be.
        """
        _check(
            self,
            {
                "layer": self.layer in ADMM_LAYERS,
                "layers": _whole(self.layers, 1, 100),
                "filters": _whole(self.filters, 1, 1024),
                "channels": self.channels in (1, 2),
                "points": _whole(self.points, 2, 10_000),
                "threshold": self.threshold > 0,
                "penalty": self.penalty > 0,
                "solve": _whole(self.solve, 1, 100),
            },
        )

    @property
    def bits(self) -> None:
        """Full precision."""
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self)


Config = NetworkConfig | ADMMConfig


def config_from_dict(values: dict[str, Any]) -> Config:
    """Invert `to_dict`.

    Raises
    ------
    ValueError
        If a field is unknown, missing or impossible.
    """
    kind: type[Config] = ADMMConfig if values.get("layer") in ADMM_LAYERS else NetworkConfig
    known = {f.name for f in fields(kind)}
    odd = sorted(set(values) ^ known)
    if set(odd) - (LATER - set(values)):
        raise ValueError(f"network configuration: missing or unknown fields {', '.join(odd)}")
    try:
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return kind(**given)
    except TypeError as error:
        raise ValueError(f"network configuration: {error}") from error


def _check(config: object, checks: dict[str, bool]) -> None:
    for name, good in checks.items():
        if not good:
            raise ValueError(f"network configuration: {name} = {getattr(config, name)!r} is not possible")


def _whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def named_config(system: str, **changes: Any) -> Config:
    """Return the configuration of a published system: a name of `SYSTEMS` or `ADMM_LAYERS`.

    Raises
    ------
    ValueError
        If `system` is unknown or a change is impossible.
    """
    if system in ADMM_LAYERS:
        return ADMMConfig(**{"layer": system, **changes})
    if system not in SYSTEMS:
        raise ValueError(f"unknown network {system!r}: choose from {', '.join((*SYSTEMS, *ADMM_LAYERS))}")
    layer, penalties = SYSTEMS[system]
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    return NetworkConfig(**({"layer": layer, "penalties": penalties} | given))
