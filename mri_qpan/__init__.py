"""Undersampled MR k-space to images with a quantized proximal averaging network (Q-PAN+)."""

from mri_qpan._version import __version__

__all__ = ["__version__"]
