"""What every unfolded network is: a call (A^H y, A^H A) -> image, with a card if it came from a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from mri_qpan.encoding import Normal
from mri_qpan.networks.config import Config
from mri_qpan.scaling import Level, robust_scale

C = TypeVar("C", bound=Config)


class Network(nn.Module, ABC, Generic[C]):
    """An unfolded network.

    Parameters
    ----------
    config
        Architecture.
    dtype
        Type of features and weights in the convolutions; images stay float32.

    Attributes
    ----------
    name
        As in the model file's header; empty without one, as what follows.
    card
        `data`, `training`, `figures` and `licence`: what it was trained on, how, what it reaches and under
        which terms it may be used.
    sha256
        Of the file, 64 hexadecimal digits.
    engine
        What runs it: "fused", "compiled", "bfloat16" or "float32".

    Notes
    -----
    With two channels the input is scaled so that a robust maximum of abs(A^H y) is 1, and the output scaled
    back; the published real-valued models (one channel) take images in [0, 1] as they are.
    """

    def __init__(self, config: C, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config: C = config
        self.dtype = dtype
        self.name = ""
        self.card: dict[str, Any] = {}
        self.sha256 = ""
        self.engine: str = "float32"

    def forward(self, adjoint: Tensor, normal: Normal) -> Tensor:
        """Reconstruct.

        Parameters
        ----------
        adjoint
            A^H y: (batch, ..., y, x), complex for a network of two channels, real for one. Layers act on
            (y, x); any dimensions between (slices, sets of maps) are worked one by one.
        normal
            The map x -> A^H A x on images of that shape.

        Returns
        -------
        Tensor
            The image, shaped and typed as `adjoint`.

        Raises
        ------
        ValueError
            If `adjoint` is complex for a real-valued network or the other way round, or no batch of images.
        """
        return self._scaled(adjoint, normal, frozenset())[0][-1]

    def reconstruct(
        self, adjoint: Tensor, normal: Normal, level: Level | None = None
    ) -> tuple[Tensor, Tensor]:
        """Reconstruct as `forward` does, and say how far the network has settled.

        Parameters
        ----------
        adjoint, normal
            As `forward` takes them.
        level
            To take instead of its own, for a part of an image; a network of one channel has none.

        Returns
        -------
        image
            As `forward` returns it.
        moved
            (batch,): how far the last layer has moved the image, relative to it.
        """
        before, image = self._scaled(adjoint, normal, frozenset(), level)[0][-2:]
        size = image.abs().flatten(1).square().sum(1)
        apart = (image - before).abs().flatten(1).square().sum(1)
        return image, (apart / size.clamp_min(torch.finfo(size.dtype).tiny)).sqrt()

    def forward_for_training(
        self, adjoint: Tensor, normal: Normal, constrained: frozenset[int]
    ) -> tuple[list[Tensor], Tensor]:
        """Return the start and every layer's image, and the sum of some layers' constraint terms (Eq. 9)."""
        return self._scaled(adjoint, normal, constrained)

    def _scaled(
        self, adjoint: Tensor, normal: Normal, constrained: frozenset[int], level: Level | None = None
    ) -> tuple[list[Tensor], Tensor]:
        complex_valued = self.config.channels == 2
        if adjoint.is_complex() != complex_valued:
            kind = "complex" if complex_valued else "real"
            raise ValueError(f"this network takes {kind} images, got {adjoint.dtype}")
        if adjoint.ndim < 3 or not adjoint.numel():
            raise ValueError(f"images are (batch, ..., y, x), none of them 0; got {tuple(adjoint.shape)}")
        if not complex_valued:
            return self._unfold(adjoint, normal, constrained)
        target, scale, power = at_unit_scale(adjoint, level)
        images, constraint = self._unfold(target, normal, constrained, power)
        return [image * scale for image in images], constraint

    @abstractmethod
    def _unfold(
        self, target: Tensor, normal: Normal, constrained: frozenset[int], power: float | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Return images and constraint of A^H y at unit scale; without gradients the last two images.

        `power` is the `Level.power` to take instead of its own.
        """

    def compile_step(self) -> None:
        """Run through `torch.compile` what gains by it (needs a C++ compiler on a CPU)."""

    def share_step(self, other: Network[C]) -> None:
        """Use what `other`, a network of the same configuration, has compiled."""

    def refit(self) -> None:
        """Fit every quantizer to its full-precision weight."""

    def follow(self) -> None:
        """Let every quantizer's scale follow its weight, once a training step."""

    def fuse(self, device: torch.device | str) -> None:
        """Run inference on `device` through the fused kernel (`engines.choose` says whether there is one)."""
        raise ValueError(f"no kernel for {self.config.layer}")

    def _needs_gradient(self, adjoint: Tensor) -> bool:
        return torch.is_grad_enabled() and (
            adjoint.requires_grad or any(p.requires_grad for p in self.parameters())
        )


def at_unit_scale(adjoint: Tensor, level: Level | None) -> tuple[Tensor, Tensor | float, float | None]:
    """Return complex A^H y at unit scale, the scale, and the `Level.power` to take, None for its own."""
    scale, power = (robust_scale(adjoint), None) if level is None else level
    return adjoint / scale, scale, power
