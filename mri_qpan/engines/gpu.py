"""K-bit PAN+ layers on an NVIDIA GPU: Triton kernels, for machines that have Triton; see gpu_kernels.py."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor

from mri_qpan.engines.fused import FEATURE_CONVOLUTIONS, FILTERS, PENALTIES, Trained, suits

if TYPE_CHECKING:
    from mri_qpan.networks.config import Config
    from mri_qpan.networks.layer import Layer
    from mri_qpan.networks.pan import ProximalNetwork

LAUNCH = {"TILE_Y": 8, "TILE_X": 32, "num_warps": 8, "enable_fp_fusion": True}
"""Pixels that a program works, which share the unpacking of weights, and its warps: compiled for compute
capabilities 8.0 and 9.0 a thread needs at most 151 registers and spills none."""

BFLOAT16 = (8, 0)
"""Least compute capability with tensor cores for it (Ampere)."""


class Features(NamedTuple):
    """What a layer hands on: (batch, y, x, filter), and a factor for each image, (batch,)."""

    values: Tensor
    factors: Tensor

    def scaled(self, factors: Tensor) -> Features:
        """Return each image's features times a factor."""
        return Features(self.values, self.factors * factors.to(self.factors.dtype))


def fits(config: Config, device: torch.device | str) -> bool:
    """Return whether the kernels can run such a network on `device`: a K-bit PAN+ of 32 filters."""
    device = torch.device(device)
    return (
        suits(config)
        and device.type == "cuda"
        and torch.cuda.is_available()
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= BFLOAT16
        and importlib.util.find_spec("triton") is not None
    )


class Fused:
    """The layers of a K-bit PAN+ without their data consistency, on a GPU.

    Parameters
    ----------
    network
        With a configuration that `fits`; the weights are packed as they are now.
    device
        Where it will run.
    dtype
        Of the features.
    """

    def __init__(
        self,
        network: ProximalNetwork,
        device: torch.device | str,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.device = torch.empty(0, device=device).device
        self._dtype = dtype
        penalties = network.config.penalties
        self._penalties = {name.upper(): int(name in penalties) for name in PENALTIES}
        self._channels = network.config.channels
        assert network.config.bits is not None
        self._bits = network.config.bits
        self._layers = [_PackedLayer(cast("Layer", x), penalties, self._bits, device) for x in network.layers]

    def __call__(self, index: int, r: Tensor, features: Features | None) -> tuple[Tensor, Features]:
        """Work a layer; see `fused.Fused`."""
        with torch.cuda.device_of(r):
            return self._work(index, r, features)

    def _work(self, index: int, r: Tensor, features: Features | None) -> tuple[Tensor, Features]:
        from mri_qpan.engines import gpu_kernels as kernels

        layer = self._layers[index]
        image = r.permute(0, 2, 3, 1).to(torch.float32).contiguous()
        batch, height, width, channels = image.shape
        one, other = (image.new_empty(batch, height, width, FILTERS, dtype=self._dtype) for _ in range(2))
        tiles = -(-height // LAUNCH["TILE_Y"]) * -(-width // LAUNCH["TILE_X"])
        grid = (tiles, batch)
        carry = features is not None and layer.gate is not None
        carried, factors = features if features is not None else (one, layer.scales[0])
        kernels.expand[grid](
            image,
            carried,
            layer.gate if carry else layer.scales[0],
            factors,
            layer.first,
            one,
            height,
            width,
            CHANNELS=channels,
            CARRY=carry,
            **LAUNCH,
        )
        steps = (kernels.RECTIFIED, kernels.AVERAGED, kernels.RECTIFIED, 0)
        for bits, scale, after in zip(layer.bits, layer.scales, steps, strict=True):
            kernels.convolve[grid](
                one,
                bits,
                scale,
                layer.shape,
                other,
                height,
                width,
                BITS=self._bits,
                AFTER=after,
                **self._penalties,
                **LAUNCH,
            )
            one, other = other, one
        made = torch.empty_like(image)
        kernels.collect[tiles, batch * channels](
            one, layer.last, image, made, height, width, CHANNELS=channels, **LAUNCH
        )
        return made.permute(0, 3, 1, 2).to(r.dtype), Features(one, image.new_ones(batch))


class _PackedLayer:
    """A layer's parameters as the kernels read them."""

    def __init__(
        self, layer: Layer, penalties: tuple[str, ...], bits: int, device: torch.device | str
    ) -> None:
        integers, scales, thresholds, gamma, a, gate = Trained.of(layer, penalties)
        self.bits = [_planes(integers[name], bits).to(device) for name in FEATURE_CONVOLUTIONS]
        self.scales = [scales[name].to(device) for name in FEATURE_CONVOLUTIONS]
        self.first = _taps(integers["D"] * scales["D"].reshape(-1, 1, 1, 1)).to(device)
        self.last = _taps((integers["G"] * scales["G"].reshape(-1, 1, 1, 1)).transpose(0, 1)).to(device)
        shape = [*(thresholds.get(name, 0.0) for name in PENALTIES), gamma, a]
        self.shape = torch.tensor(shape, device=device)
        self.gate = None if gate is None else gate.to(device)


def _taps(weight: Tensor) -> Tensor:
    """Reorder (filter, channel, y, x) to (tap, channel, filter)."""
    return weight.permute(2, 3, 1, 0).reshape(9, weight.shape[1], -1).contiguous()


def _planes(integers: Tensor, bits: int) -> Tensor:
    """Pack odd integers (filter, feature, y, x) into (tap, bit, filter) int32, a bit for each feature."""
    levels = ((integers + (2**bits - 1)) / 2).to(torch.int64).permute(2, 3, 0, 1).reshape(9, -1, FILTERS)
    place = torch.arange(FILTERS)
    planes = [((levels >> bit & 1) << place).sum(-1) for bit in range(bits)]
    words = torch.stack(planes, dim=1)
    return (words - (words >> 31 << 32)).to(torch.int32)
