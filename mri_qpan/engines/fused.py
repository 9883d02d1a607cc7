"""K-bit PAN+ layers in one pass over the image: a C++ kernel that the package works without.

Features are 8-bit integers between convolutions and 16-bit ones from layer to layer, times a step for each
row of the image; weights are the odd integers that were trained. See fused.cpp.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor

from mri_qpan import quantize
from mri_qpan.engines import kernels

if TYPE_CHECKING:
    from mri_qpan.networks.config import Config
    from mri_qpan.networks.convolution import Convolution
    from mri_qpan.networks.layer import Layer
    from mri_qpan.networks.pan import ProximalNetwork

FILTERS = 32
ZERO = 128
"""What stands for 0 in 8-bit maps with negative values."""

EQUAL, FASTER = 1, 2
"""What a trial of tiles can tell."""

TRIAL = (48, 128, 2)
"""Rows, columns and channels of its image."""

PENALTIES = ("l1", "mcp", "scad")
FEATURE_CONVOLUTIONS = ("H1", "H2", "T1", "T2")
_POINTER = ctypes.c_void_p


class _CLayer(ctypes.Structure):
    """Mirrors `Layer` in fused.cpp."""

    _fields_ = (
        ("d", _POINTER),
        ("h", _POINTER * 4),
        ("shift", _POINTER * 4),
        ("v", _POINTER * 4),
        ("g", _POINTER),
        ("vg", _POINTER),
        ("gate", _POINTER),
        ("lam", ctypes.c_float * 3),
        ("gamma", ctypes.c_float),
        ("a", ctypes.c_float),
        ("channels", ctypes.c_int),
    )


class _CPlane(ctypes.Structure):
    """Mirrors `Plane` in fused.cpp."""

    _fields_ = (
        ("r", _POINTER),
        ("carried", _POINTER),
        ("carried_steps", _POINTER),
        ("image", _POINTER),
        ("features", _POINTER),
        ("steps", _POINTER),
        ("height", ctypes.c_int),
        ("width", ctypes.c_int),
    )


class Features(NamedTuple):
    """What a layer hands on: integers (batch, y, x, filter), and each row's value of one unit (batch, y)."""

    units: Tensor
    steps: Tensor

    def scaled(self, factors: Tensor) -> Features:
        """Return each image's features times a factor."""
        return Features(self.units, self.steps * factors.to(self.steps.dtype)[:, None])


def suits(config: Config) -> bool:
    """Return whether kernels for such a network are written: a K-bit PAN+ of 32 filters."""
    return (
        config.bits is not None
        and config.layer == "pan+"
        and config.filters == FILTERS
        and config.shares == "equal"
    )


def fits(config: Config) -> bool:
    """Return whether the kernel `suits` the network and can run on this machine's CPU."""
    return suits(config) and kernels.width() > 0


@functools.cache
def best_width() -> int:
    """Return the bits that the kernel works at: a vector's 512 or 256, or a tile's 8192 (AMX) after a trial.

    No processor with AMX was at hand when its code was written, only an emulation. So another process works a
    layer both ways first, once: tiles are used where they give the vectors' numbers to the bit, faster.
    MRI_QPAN_AMX=0 in the environment spares the trial and the tiles.
    """
    library = kernels.library()
    if library is None or os.environ.get("MRI_QPAN_AMX") == "0":
        return kernels.width()
    tiles = int(library.mri_qpan_fused_tiles())
    return tiles if tiles and trial(library) == EQUAL | FASTER else kernels.width()


def trial(library: ctypes.CDLL) -> int:
    """Return `EQUAL`, if tiles give what vectors give, and `FASTER`, if they are, as flags; 0 if neither."""
    from mri_qpan.networks import NetworkConfig, ProximalNetwork

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ProximalNetwork(NetworkConfig(layers=1, filters=FILTERS, bits=3))
        r = torch.randn(TRIAL)
    layer = _PackedLayer(network.layers[0], network.config.penalties)  # type: ignore[arg-type]
    made = [
        (
            torch.empty_like(r),
            torch.empty(*TRIAL[:2], FILTERS, dtype=torch.int16),
            torch.empty(TRIAL[0]),
        )
        for _ in range(2)
    ]
    planes = [_CPlane(_address(r), None, None, *map(_address, tensors), *TRIAL[:2]) for tensors in made]
    return int(library.mri_qpan_fused_trial(ctypes.byref(layer.structure), *map(ctypes.byref, planes), 3))


class Fused:
    """The layers of a K-bit PAN+ without their data consistency, on a CPU.

    Parameters
    ----------
    network
        With a configuration that `fits`; the weights are packed as they are now.
    vector_width
        Largest width of vectors to use, in bits, 8192 for tiles (AMX); None: `best_width`.
    """

    def __init__(self, network: ProximalNetwork, vector_width: int | None = None) -> None:
        self.device = torch.device("cpu")
        self._width = vector_width or best_width()
        self._channels = network.config.channels
        self._layers = [_PackedLayer(layer, network.config.penalties) for layer in network.layers]  # type: ignore[arg-type]

    def __call__(self, index: int, r: Tensor, features: Features | None) -> tuple[Tensor, Features]:
        """Work a layer.

        Parameters
        ----------
        index
            Of the layer.
        r
            Images (batch, channels, y, x); worked in float32.
        features
            What the layer before handed on.

        Returns
        -------
        image
            As `r`.
        features
            For the next layer.

        Raises
        ------
        ValueError
            If images or features are not of the network's and each other's shape.
        """
        planes = r.permute(0, 2, 3, 1).to(torch.float32).contiguous()
        image = torch.empty_like(planes)
        made = Features(
            planes.new_empty(*planes.shape[:3], FILTERS, dtype=torch.int16),
            planes.new_empty(planes.shape[:2]),
        )
        if planes.shape[3] != self._channels or (features and features[0].shape[:3] != planes.shape[:3]):
            raise ValueError(f"images {tuple(r.shape)} do not fit the network or the features handed on")
        library = kernels.library()
        assert library is not None
        for i in range(len(planes)):
            carried = (None, None) if features is None else (_address(t[i]) for t in features)
            c_plane = _CPlane(
                _address(planes[i]),
                *carried,
                _address(image[i]),
                *(_address(t[i]) for t in made),
                *planes.shape[1:3],
            )
            outcome = library.mri_qpan_fused_layer(
                ctypes.byref(self._layers[index].structure),
                ctypes.byref(c_plane),
                torch.get_num_threads(),
                self._width,
            )
            kernels.check(outcome)
        return image.permute(0, 3, 1, 2).to(r.dtype), made


def _address(tensor: Tensor) -> int:
    return tensor.data_ptr()


class Trained(NamedTuple):
    """What a K-bit layer was trained to be, on the CPU, for a kernel to pack.

    Attributes
    ----------
    integers
        Odd integers (out, in, y, x) float32 by convolution.
    scales
        (out,) of each.
    thresholds
        By penalty.
    gamma, a
        Shapes of MCP and SCAD.
    gate
        (filter,) of carried features, or None.
    """

    integers: dict[str, Tensor]
    scales: dict[str, Tensor]
    thresholds: dict[str, float]
    gamma: float
    a: float
    gate: Tensor | None

    @classmethod
    def of(cls, layer: Layer, penalties: tuple[str, ...]) -> Trained:
        """Return what `layer` holds now."""
        integers, scales = {}, {}
        for name, module in layer.convolutions.items():
            convolution = cast("Convolution", module)
            weight = convolution.weight.detach().float().cpu()
            scale = convolution.scale.detach().float().cpu()
            assert convolution.bits is not None
            integers[name] = quantize.levels(weight, scale, convolution.bits)
            scales[name] = scale.flatten().expand(weight.shape[0]).clone()
        lam, gamma, a = (t.detach().float().cpu() for t in layer.thresholds())
        thresholds = dict(zip(penalties, lam.tolist(), strict=True))
        gate = layer.carry.detach().float().cpu().clone() if hasattr(layer, "carry") else None
        return cls(integers, scales, thresholds, float(gamma), float(a), gate)


class _PackedLayer:
    """A layer's parameters as the kernel reads them."""

    def __init__(self, layer: Layer, penalties: tuple[str, ...]) -> None:
        integers, scales, thresholds, gamma, a, gate = Trained.of(layer, penalties)
        first = (integers["D"] * scales["D"].reshape(-1, 1, 1, 1)).permute(2, 3, 1, 0).contiguous()
        middle = [_grouped(integers[name]) for name in FEATURE_CONVOLUTIONS]
        # H1 and T1 work maps with negative values.
        shifts = [_shift(integers[name]) if name in ("H1", "T1") else None for name in FEATURE_CONVOLUTIONS]
        factors = [scales[name] for name in FEATURE_CONVOLUTIONS]
        last = integers["G"].permute(0, 2, 3, 1).to(torch.int16).contiguous()
        # The structure holds addresses alone: the tensors must live as long.
        self._kept = (first, middle, shifts, factors, last, scales["G"], gate)
        self.structure = _CLayer(
            d=first.data_ptr(),
            h=(_POINTER * 4)(*(t.data_ptr() for t in middle)),
            shift=(_POINTER * 4)(*(None if t is None else t.data_ptr() for t in shifts)),
            v=(_POINTER * 4)(*(t.data_ptr() for t in factors)),
            g=last.data_ptr(),
            vg=scales["G"].data_ptr(),
            gate=None if gate is None else gate.data_ptr(),
            lam=(ctypes.c_float * 3)(*(thresholds.get(name, -1.0) for name in PENALTIES)),
            gamma=gamma,
            a=a,
            channels=first.shape[2],
        )


def _grouped(integers: Tensor) -> Tensor:
    """Reorder (out, in, y, x) to (y, x, in / 4, out, 4) in 8 bits."""
    outputs, inputs = integers.shape[:2]
    groups = integers.permute(2, 3, 1, 0).reshape(3, 3, inputs // 4, 4, outputs)
    return groups.transpose(3, 4).to(torch.int8).contiguous()


def _shift(integers: Tensor) -> Tensor:
    """Return minus what a map of ZERO adds to each row of taps and filter, (y, out)."""
    return (-ZERO * integers.sum((1, 3))).T.to(torch.int32).contiguous()
