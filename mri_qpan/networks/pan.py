"""PAN and PAN+ with their one-penalty cases ISTA-Net and ISTA-Net+, at full precision or K bits.

Source: Nareddy et al., "Quantized Proximal Averaging Network for Analysis Sparse Coding", Eq. 7-11;
ISTA-Net(+): Zhang and Ghanem, CVPR 2018.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from mri_qpan import engines
from mri_qpan.encoding import Normal
from mri_qpan.engines import convolutions, fused, gpu, inplace
from mri_qpan.networks.base import Network, at_unit_scale
from mri_qpan.networks.config import NetworkConfig
from mri_qpan.networks.consistency import (
    conditioning,
    conjugate_gradient,
    data_consistency,
    energy,
    mismatch,
)
from mri_qpan.networks.contraction import Contraction, contraction
from mri_qpan.networks.convolution import Convolution
from mri_qpan.networks.floor import floor_of, lifted, share_acquired
from mri_qpan.networks.layer import TYPICAL_MISMATCH, Layer
from mri_qpan.penalties import proximal_average
from mri_qpan.scaling import Level

Convolve = Callable[[Tensor, Tensor, bool], Tensor]
"""(x, weight, rectified) -> their convolution, see `engines.convolutions`."""


def proximal_step(
    r: Tensor,
    carried: Tensor | None,
    weights: Sequence[Tensor],
    lam: Tensor,
    gamma: Tensor,
    a: Tensor,
    penalties: tuple[str, ...],
    dtype: torch.dtype,
    constrain: bool,
    convolve: Convolve = convolutions.plain,
    shares: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One layer without its data consistency: Eq. 8 (four weights) or Eq. 11 (six).

    A plain function of tensors, so that `torch.compile` fuses the proximal operators' many small passes
    and every layer shares the compiled code.

    Parameters
    ----------
    r
        Image after the gradient step, (batch, channels, y, x) float32.
    carried
        Features of the layer before, (batch, n_f, y, x), or None.
    weights
        H1, H2, T1, T2 for PAN; D, H1, H2, T1, T2, G for PAN+.
    lam, gamma, a
        Thresholds and shapes of the penalties.
    penalties
        Names of the averaged penalties.
    dtype
        Type of features and weights in the convolutions.
    constrain
        Return the layer's term of the loss (Eq. 9) too.
    convolve
        `convolutions.plain`, or `convolutions.convolve`.
    shares
        Weights of the proximal operators; None: equal.

    Returns
    -------
    image
        As `r`.
    features
        H~(P(H(z))), what the next layer may carry on.
    constraint
        mean((H~(H(z)) - z)^2), z = D r (+ carried) for PAN+, z = r for PAN; None unless `constrain`.
    """
    weights = [w.to(dtype=dtype, memory_format=torch.channels_last) for w in weights]
    residual = len(weights) == 6
    z = r.to(dtype)
    if residual:
        z = convolve(z, weights[0], False)
    if carried is not None:
        z = z + carried
    h1, h2, t1, t2 = weights[1:5] if residual else weights
    features = convolve(convolve(z, h1, False), h2, True)
    # Thresholds are rounded with the features, or type promotion would widen every pass.
    parts = None if shares is None else list(shares.to(dtype))
    shrunk = proximal_average(features, list(lam.to(dtype)), gamma.to(dtype), a.to(dtype), penalties, parts)
    back = convolve(convolve(shrunk, t1, False), t2, True)
    image = r + convolve(back, weights[5], False).to(r.dtype) if residual else back.to(r.dtype)
    if not constrain:
        return image, back, None
    inverted = convolve(convolve(features, t1, False), t2, True)
    return image, back, (inverted.float() - z.float()).square().mean()


class State(NamedTuple):
    """What a layer hands to the next.

    Attributes
    ----------
    x
        The image, at unit scale.
    carried
        Its features, None where the network hands none on.
    apart
        `consistency.mismatch` of the image before data consistency, (batch,).
    gain
        How many times larger than a typical image's its thresholds were, (batch,).
    scale
        abs(A^H y)^2 that `apart` is relative to, (batch,).
    """

    x: Tensor
    carried: Tensor | fused.Features | gpu.Features | None
    apart: Tensor
    gain: Tensor
    scale: Tensor


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (images.ndim - 1))


class ProximalNetwork(Network[NetworkConfig]):
    """An unfolded proximal averaging network, or one of its one-penalty cases.

    Parameters
    ----------
    config, dtype
        See `Network`.
    """

    def __init__(self, config: NetworkConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(config, dtype)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        if config.floor:
            self.floor = nn.Parameter(torch.zeros(2))
        self._proximal_step = proximal_step
        self._compiled = False
        self._kernel: engines.Kernel | None = None
        self._packed: list[tuple[int, int]] = []  # the weights that the kernel has
        self._fused_on: torch.device | None = None

    @torch.inference_mode()
    def proximal_step(self, index: int, image: Tensor) -> Tensor:
        """Work one layer alone, without data consistency or carried features.

        Parameters
        ----------
        index
            Of the layer.
        image
            (..., y, x), complex for two channels, of maximum about 1.

        Returns
        -------
        Tensor
            The image, as `image`.
        """
        layer = self.layers[index]
        assert isinstance(layer, Layer)
        worked, _, _ = self._work(layer, self._to_channels(image), None, False, False)
        return self._from_channels(worked, image.shape)

    @torch.inference_mode()
    def contraction(self, adjoint: Tensor, normal: Normal, level: Level | None = None) -> Contraction:
        """Return how the last layer acts near the network's result, as float32 has it.

        Features that it carries and the gain of its thresholds stay those of the result.

        Parameters
        ----------
        adjoint, normal, level
            As `reconstruct` takes them.
        """
        # Eight bits or bfloat16 would round away the small steps that are compared.
        plain = copy(self)
        plain.dtype, plain._compiled, plain._proximal_step = torch.float32, False, proximal_step
        plain._fused_on = None
        target, power = adjoint, None
        if self.config.channels == 2:
            target, _, power = at_unit_scale(adjoint, level)
        last = len(self.layers) - 1
        state = before = plain._start(target, normal, power)
        for index in range(last + 1):
            before, state = state, plain._advance(index, state, target, normal, False, False)[0]

        def further(x: Tensor) -> Tensor:
            return plain._advance(last, state._replace(x=x), target, normal, False, False)[0].x

        return contraction(further, before.x, state.x)

    def compile_step(self) -> None:
        """Run the proximal step through `torch.compile` from now on (needs a C++ compiler on a CPU)."""
        # A keyed cache of its own for every image size: dynamic shapes cost the convolutions' fast path.
        step = partial(proximal_step, convolve=convolutions.convolve)
        self._proximal_step = torch.compile(step, dynamic=False)
        self._compiled = True

    def fuse(self, device: torch.device | str) -> None:
        """Run inference on `device` through the fused kernel from now on; changed weights are packed again.

        The kernel must fit the network and the device (`engines.choose`). On any other device the network
        runs without it, in `dtype`.
        """
        self.run_through(engines.fuse(self, device))

    def run_through(self, kernel: engines.Kernel) -> None:
        """Run inference through `kernel`, which holds this network's weights, until they change."""
        self._packed = self._versions()
        self._kernel = kernel
        self._fused_on = kernel.device

    def _versions(self) -> list[tuple[int, int]]:
        """Return what changes with the weights; those that were made in inference mode do not tell."""
        held = [*self.parameters(), *self.buffers()]
        return [(w.data_ptr(), -1 if w.is_inference() else w._version) for w in held]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what holds addresses or code: a copy makes its own kernel, at its first image."""
        plain: dict[str, Any] = {"_kernel": None, "_packed": [], "_proximal_step": proximal_step}
        return {**self.__dict__, **plain}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Become a copy, which may be on another machine."""
        super().__setstate__(state)
        if self._compiled:
            self.compile_step()
        if self._fused_on is not None:
            try:
                engines.choose("fused", self.config, self._fused_on)
            except ValueError:
                self._fused_on, self.engine = None, "float32"

    def share_step(self, other: Network[NetworkConfig]) -> None:
        """Use the compiled proximal step of `other`, a network of the same configuration."""
        assert isinstance(other, ProximalNetwork)
        self._proximal_step = other._proximal_step
        self._compiled = other._compiled

    def refit(self) -> None:
        """Fit every quantizer to its full-precision weight."""
        for module in self.modules():
            if isinstance(module, Convolution):
                module.refit()

    def follow(self) -> None:
        """Let every quantizer's scale follow its weight, once a training step."""
        for module in self.modules():
            if isinstance(module, Convolution):
                module.follow()

    def _unfold(
        self, target: Tensor, normal: Normal, constrained: frozenset[int], power: float | None = None
    ) -> tuple[list[Tensor], Tensor]:
        state = self._start(target, normal, power)
        images = [state.x]
        total = state.apart.new_zeros(())
        training = self._needs_gradient(target)
        fused = self._fused_on is not None and not (training or is_compiling())
        if fused and self._versions() != self._packed:
            assert self._fused_on is not None
            self.fuse(self._fused_on)
        for index in range(len(self.layers)):
            state, lift, term = self._advance(index, state, target, normal, training, index in constrained)
            x = state.x if lift is None else lifted(state.x, lift)
            # Without gradients only the last two images are asked for; the others would hold memory.
            images = [*images, x] if training else [images[-1], x]
            if term is not None:
                total = total + term
        return images, total

    def _start(self, target: Tensor, normal: Normal, power: float | None) -> State:
        apart = target.real.new_full((target.shape[0],), TYPICAL_MISMATCH)
        x = conjugate_gradient(target, normal, self.config.start)
        scale = energy(target) if power is None else torch.full_like(apart, power * target[0].numel())
        return State(x, None, apart, torch.ones_like(apart), scale)

    def _advance(
        self, index: int, state: State, target: Tensor, normal: Normal, training: bool, constrain: bool
    ) -> tuple[State, Tensor | None, Tensor | None]:
        """Work a layer; return what it hands on, the noise floor after the last, and its constraint term."""
        layer = self.layers[index]
        assert isinstance(layer, Layer)
        x, carried, apart, gain, scale = state
        kernel = None if training or is_compiling() else self._kernel
        if kernel is not None and kernel.device != target.device:
            kernel = None
        if not self.config.consistency:
            x = x - layer.step() * (normal(x) - target)
        # Every layer but its thresholds is homogeneous: thresholds times a gain are the image over it.
        if self.config.adaptive and index:
            gain = layer.gain(apart)
            x = x / _per_image(gain, x)
        channels = self._to_channels(x)
        ratio = (state.gain / gain).repeat_interleave(channels.shape[0] // gain.shape[0])
        lift = term = None
        if kernel is not None:
            if torch.is_grad_enabled() and channels.requires_grad:
                raise RuntimeError(
                    "the fused engine takes no gradient of the maps alone: have A^H y depend on them too, or "
                    'load the model with engine="float32" and parameters that require gradients'
                )
            assert not isinstance(carried, Tensor)
            image, features = kernel(index, channels, carried and carried.scaled(ratio))
            carried = features if self.config.carry else None
        else:
            assert carried is None or isinstance(carried, Tensor)
            if carried is not None and self.config.adaptive:
                carried = carried * _per_image(ratio, carried).to(carried.dtype)
            image, carried, term = self._work(layer, channels, carried, training, constrain)
        x = self._from_channels(image, x.shape)
        if self.config.adaptive:
            x = x * _per_image(gain, x)
        if self.config.consistency:
            last = self.config.floor and index + 1 == len(self.layers)
            # Before the others: `normal` may give one buffer again and again.
            share = share_acquired(x, normal) if last else None
            residual = target - normal(x)
            apart = mismatch(residual, scale)
            applied = normal(residual)
            conditioned = conditioning(residual, applied)
            mu = layer.trust(apart, conditioned)
            if share is not None:
                lift = floor_of(self.floor, residual, conditioned, share)
            x = data_consistency(x, residual, target, normal, mu, self.config.consistency, applied)
        if self.config.exact and index + 1 == len(self.layers):
            x = x - (normal(x) - target)
        return State(x, carried, apart, gain, scale), lift, term

    def _work(
        self, layer: Layer, channels: Tensor, carried: Tensor | None, training: bool, constrain: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return a layer's image, what it hands on, and its constraint term."""
        parameters = (layer.weights(), *layer.thresholds(), self.config.penalties, self.dtype)
        if self.config.carry:
            carried = self._carried(channels, carried, layer.carry)
        if self._compiled or training or constrain or is_compiling():
            image, features, term = self._proximal_step(
                channels, carried, *parameters, constrain, shares=layer.shares()
            )
        else:
            image, features = inplace.proximal_step(channels, carried, *parameters, layer.shares())
            term = None
        return image, features if self.config.carry else None, term

    def _carried(self, channels: Tensor, features: Tensor | None, gate: Tensor) -> Tensor:
        if features is None:
            shape = (channels.shape[0], self.config.filters, *channels.shape[2:])
            features = torch.zeros(shape, dtype=self.dtype, device=channels.device)
            return features.contiguous(memory_format=torch.channels_last)
        return features * gate.to(self.dtype).reshape(1, -1, 1, 1)

    def _to_channels(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, *x.shape[-2:])
        if self.config.channels == 1:
            return flat.unsqueeze(1)
        # The interleaved real and imaginary parts are channels-last already: no copy.
        return torch.view_as_real(flat).permute(0, 3, 1, 2)

    def _from_channels(self, image: Tensor, shape: torch.Size) -> Tensor:
        if self.config.channels == 1:
            return image.reshape(shape)
        return torch.view_as_complex(image.permute(0, 2, 3, 1).contiguous()).reshape(shape)
