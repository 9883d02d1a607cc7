"""Classical reconstructions with the networks' call: (A^H y, A^H A) -> image; they need no training."""

from collections.abc import Callable

from mri_qpan.encoding import Reconstructor
from mri_qpan.solvers.cg_sense import CGSense
from mri_qpan.solvers.paisa import PAISA
from mri_qpan.solvers.tv import TotalVariation
from mri_qpan.solvers.wavelet import Wavelet
from mri_qpan.solvers.zero_filled import ZeroFilled

SOLVERS: dict[str, Callable[[], Reconstructor]] = {
    "zero-filled": ZeroFilled,
    "cg-sense": CGSense,
    "wavelet": Wavelet,
    "tv": TotalVariation,
    "paisa": PAISA,
}
"""Every solver by its name on the command line; called without arguments it has its defaults,
which are set for an image of robust maximum 1 (`mri_qpan.scaling`)."""

__all__ = ["PAISA", "SOLVERS", "CGSense", "TotalVariation", "Wavelet", "ZeroFilled"]
