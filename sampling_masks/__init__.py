"""Which k-space samples are measured: masks of every common kind, with the ratio and the seed asked for.

Masks are bool, (y, x) or (z, y, x), with the zero frequency at index n // 2.
"""

from mri_qpan.sampling_masks.errors import MaskError
from mri_qpan.sampling_masks.files import SUFFIXES, load_mask, save_mask
from mri_qpan.sampling_masks.lines import equispaced, lines, partial
from mri_qpan.sampling_masks.poisson import poisson
from mri_qpan.sampling_masks.radial import radial, spokes
from mri_qpan.sampling_masks.random2d import random2d
from mri_qpan.sampling_masks.spec import KINDS, kind_names, make_mask, parse_spec
from mri_qpan.sampling_masks.summary import mask_hash, ratio_from_acceleration, ratio_of

__all__ = [
    "KINDS",
    "SUFFIXES",
    "MaskError",
    "equispaced",
    "kind_names",
    "lines",
    "load_mask",
    "make_mask",
    "mask_hash",
    "parse_spec",
    "partial",
    "poisson",
    "radial",
    "random2d",
    "ratio_from_acceleration",
    "ratio_of",
    "save_mask",
    "spokes",
]
