"""K-bit PAN+ layers in one pass over the image: a C++ kernel that the package works without.

Features are 16-bit integers times a step that is chosen for each map; weights are the odd integers that were
trained, so sums are exact. See fused.cpp.
"""

from __future__ import annotations

import ctypes
import functools
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor

from mri_qpan import quantize

if TYPE_CHECKING:
    from mri_qpan.networks.config import NetworkConfig
    from mri_qpan.networks.convolution import Convolution
    from mri_qpan.networks.pan import Layer, ProximalNetwork

FILTERS = 32
MAPS = 5
LARGEST = 32767.0
MARGIN = 4.0
"""How far beyond the calibration image's features a step reaches; what exceeds it is worked again."""

PENALTIES = ("l1", "mcp", "scad")
FEATURE_CONVOLUTIONS = ("H1", "H2", "T1", "T2")
_POINTER = ctypes.c_void_p


class _CLayer(ctypes.Structure):
    """Mirrors `Layer` in fused.cpp."""

    _fields_ = (
        ("d", _POINTER),
        ("h", _POINTER * 4),
        ("v", _POINTER * 4),
        ("g", _POINTER),
        ("vg", _POINTER),
        ("gate", _POINTER),
        ("step", ctypes.c_float * MAPS),
        ("carried_step", ctypes.c_float),
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
        ("image", _POINTER),
        ("features", _POINTER),
        ("height", ctypes.c_int),
        ("width", ctypes.c_int),
    )


class Features(NamedTuple):
    """What a layer hands on: 16-bit integers (batch, y, x, filter), and each image's value of one unit."""

    units: Tensor
    steps: list[float]

    def scaled(self, factors: Tensor) -> Features:
        """Return each image's features times a factor."""
        return Features(self.units, [s * f for s, f in zip(self.steps, factors.tolist(), strict=True)])


@functools.cache
def _library() -> ctypes.CDLL | None:
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name("_fused" + suffix)
        if path.exists():
            try:
                return ctypes.CDLL(str(path))
            except OSError:  # built for another machine
                continue
    return None


def width() -> int:
    """Return the bits of the vectors that the kernel uses here: 512, 256, or 0 where it cannot run."""
    library = _library()
    return 0 if library is None else int(library.mri_qpan_fused_width())


def fits(config: NetworkConfig) -> bool:
    """Return whether the kernel can run such a network on this machine's CPU: a K-bit PAN+ of 32 filters."""
    return config.bits is not None and config.layer == "pan+" and config.filters == FILTERS and width() > 0


class Fused:
    """The layers of a K-bit PAN+ without their data consistency, on a CPU.

    Parameters
    ----------
    network
        With a configuration that `fits`; later changes of its weights are not seen.
    vector_width
        Largest width of vectors to use, in bits; None: all that the processor has.
    """

    def __init__(self, network: ProximalNetwork, vector_width: int | None = None) -> None:
        self._width = vector_width or width()
        self._channels = network.config.channels
        self._layers = [_PackedLayer(layer, network.config.penalties) for layer in network.layers]  # type: ignore[arg-type]
        self._calibrate()

    def __call__(self, index: int, r: Tensor, features: Features | None) -> tuple[Tensor, Features]:
        """Work a layer.

        Parameters
        ----------
        index
            Of the layer.
        r
            Images (batch, channels, y, x) float32.
        features
            What the layer before handed on.

        Returns
        -------
        image
            As `r`.
        features
            For the next layer.
        """
        planes = r.permute(0, 2, 3, 1).contiguous()
        image = torch.empty_like(planes)
        units = torch.empty(*planes.shape[:3], FILTERS, dtype=torch.int16)
        steps = []
        for i in range(len(planes)):
            carried = None if features is None else (features.units[i], features.steps[i])
            steps.append(self._work(self._layers[index], planes[i], carried, image[i], units[i]))
        return image.permute(0, 3, 1, 2), Features(units, steps)

    def _work(
        self,
        layer: _PackedLayer,
        plane: Tensor,
        carried: tuple[Tensor, float] | None,
        image: Tensor,
        units: Tensor,
    ) -> float:
        """Fill `image` and `units` and return the value of one unit."""
        steps = list(layer.steps)
        for _ in range(2 * MAPS):
            reach = self._run(layer, steps, plane, carried, image, units)
            clipped = [i for i, r in enumerate(reach) if r > LARGEST]
            if not clipped:
                break
            # Maps behind the first clipped one saw wrong features: their reach says nothing yet.
            steps[clipped[0]] *= 1.5 * reach[clipped[0]] / LARGEST
        return steps[-1]

    def _run(
        self,
        layer: _PackedLayer,
        steps: list[float],
        plane: Tensor,
        carried: tuple[Tensor, float] | None,
        image: Tensor,
        units: Tensor,
    ) -> list[float]:
        library = _library()
        assert library is not None
        c_layer = layer.structure
        c_layer.step = (ctypes.c_float * MAPS)(*steps)
        c_layer.carried_step = carried[1] if carried else 0.0
        c_plane = _CPlane(
            plane.data_ptr(),
            carried[0].data_ptr() if carried else None,
            image.data_ptr(),
            units.data_ptr(),
            plane.shape[0],
            plane.shape[1],
        )
        reach = (ctypes.c_float * MAPS)()
        failed = library.mri_qpan_fused_layer(
            ctypes.byref(c_layer), ctypes.byref(c_plane), torch.get_num_threads(), self._width, reach
        )
        if failed:
            raise RuntimeError(f"this processor lacks the {self._width}-bit vectors asked for")
        return list(reach)

    def _calibrate(self) -> None:
        """Choose every map's step from a fixed picture of flat patches, edges and noise."""
        draw = torch.Generator().manual_seed(0)
        patches = torch.rand(8, 8, self._channels, generator=draw) * 2 - 1
        picture = patches.repeat_interleave(8, 0).repeat_interleave(8, 1)
        picture = (picture + 0.05 * torch.randn(64, 64, self._channels, generator=draw)).contiguous()
        carried = None
        for layer in self._layers:
            image = torch.empty_like(picture)
            units = torch.empty(64, 64, FILTERS, dtype=torch.int16)
            for map_index in range(MAPS):
                reach = self._run(layer, layer.steps, picture, carried, image, units)
                # At least a thousandth of a unit: a map of zeros must not end with a step of zero.
                layer.steps[map_index] *= max(MARGIN * reach[map_index] / LARGEST, 1e-3)
            self._run(layer, layer.steps, picture, carried, image, units)
            picture, carried = image, (units, layer.steps[-1])


class _PackedLayer:
    """A layer's parameters as the kernel reads them, and the steps of its maps."""

    def __init__(self, layer: Layer, penalties: tuple[str, ...]) -> None:
        self.steps = [1e-3] * MAPS
        integers, scales = {}, {}
        for name, module in layer.convolutions.items():
            convolution = cast("Convolution", module)
            weight = convolution.weight.detach().float().cpu()
            scale = convolution.scale.detach().float().cpu()
            assert convolution.bits is not None
            integers[name] = quantize.levels(weight, scale, convolution.bits)
            scales[name] = scale.flatten().expand(weight.shape[0]).contiguous()
        lam, gamma, a = (t.detach().float().cpu() for t in layer.thresholds())
        thresholds = dict(zip(penalties, lam.tolist(), strict=True))
        first = (integers["D"] * scales["D"].reshape(-1, 1, 1, 1)).permute(2, 3, 1, 0).contiguous()
        middle = [_paired(integers[name]) for name in FEATURE_CONVOLUTIONS]
        factors = [scales[name] for name in FEATURE_CONVOLUTIONS]
        last = integers["G"].permute(2, 3, 0, 1).to(torch.int16).contiguous()
        gate = layer.carry.detach().float().cpu().contiguous() if hasattr(layer, "carry") else None
        # The structure holds addresses alone: the tensors must live as long.
        self._kept = (first, middle, factors, last, scales["G"], gate)
        self.structure = _CLayer(
            d=first.data_ptr(),
            h=(_POINTER * 4)(*(t.data_ptr() for t in middle)),
            v=(_POINTER * 4)(*(t.data_ptr() for t in factors)),
            g=last.data_ptr(),
            vg=scales["G"].data_ptr(),
            gate=None if gate is None else gate.data_ptr(),
            lam=(ctypes.c_float * 3)(*(thresholds.get(name, -1.0) for name in PENALTIES)),
            gamma=float(gamma),
            a=float(a),
            channels=first.shape[2],
        )


def _paired(integers: Tensor) -> Tensor:
    """Reorder (out, in, y, x) to (y, x, in / 2, out, 2) in 16 bits."""
    outputs, inputs = integers.shape[:2]
    pairs = integers.permute(2, 3, 1, 0).reshape(3, 3, inputs // 2, 2, outputs)
    return pairs.transpose(3, 4).to(torch.int16).contiguous()
