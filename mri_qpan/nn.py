"""The reconstruction as one `torch.nn.Module`: k-space, maps and mask in, the image out."""

from __future__ import annotations

from torch import Tensor, nn

from mri_qpan.encoding import Encoding
from mri_qpan.models import DEFAULT, load_model
from mri_qpan.models.store import Model


class Reconstruction(nn.Module):
    """A network with its data consistency, for training, `torch.compile` and `torch.export`.

    Parameters
    ----------
    network
        Name of a shipped model, path of a model file, or a network for complex images.

    Notes
    -----
    Gradients reach k-space, the maps (if they require one) and the weights (after `requires_grad_()`: loaded
    models are frozen). K-bit weights pass theirs to the full-precision weight behind them. The intensity
    scale, the step lengths of conjugate gradients and the measures that thresholds and mu follow count as
    constants, as in the networks' own training.

    Raises
    ------
    ModelError
        If the model cannot be used.

    Examples
    --------
    >>> image = Reconstruction("qpan+-3bit")(kspace, mps, mask)  # doctest: +SKIP
    """

    def __init__(self, network: Model | str = DEFAULT) -> None:
        super().__init__()
        self.network: Model = load_model(network, engine="float32") if isinstance(network, str) else network

    def forward(self, kspace: Tensor, mps: Tensor, mask: Tensor) -> Tensor:
        """Reconstruct.

        Parameters
        ----------
        kspace
            (batch, coil, y, x) complex, centred; values where nothing was acquired do not count.
        mps
            Coil sensitivities (batch, coil, y, x) complex with sum_c abs(S_c)^2 of at most 1.
        mask
            True where a sample was acquired, (batch, y, x) bool; batch may be 1 for all.

        Returns
        -------
        Tensor
            The image, (batch, y, x) complex, at the scale of `kspace`.
        """
        encoding = Encoding(mask, mps)
        return self.network(encoding.adjoint(kspace), encoding.normal)
