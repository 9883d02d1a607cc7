"""The zero-filled image: what everything else is compared with."""

from torch import Tensor

from mri_qpan.encoding import Normal


class ZeroFilled:
    """Return A^H y as it is."""

    linear = True

    def __call__(self, adjoint: Tensor, normal: Normal) -> Tensor:
        """Return `adjoint`, A^H y, (batch, *spatial) complex64."""
        return adjoint
