"""3x3 convolutions in float32 on a CPU with their gradients, as PyTorch operators. See convolutions.cpp.

Between features by Winograd's F(4x4, 3x3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks", CVPR 2016): a quarter of the multiplications, at a rounding error of 1e-6. Between an image and
features as products with its neighbourhoods.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mri_qpan.engines import kernels

FEATURES = 32
"""Numbers of features that the kernels take are multiples of this."""

FEW = (1, 2)
"""Channels of an image."""

WIDTH = kernels.width()
"""Bits of the kernels' vectors on this machine; 0 where they cannot run."""


class _Images(ctypes.Structure):
    """Mirrors `Images` in convolutions.cpp."""

    _fields_ = [(name, ctypes.c_int) for name in ("count", "height", "width", "inputs", "outputs")]


def fits(x: Tensor, weight: Tensor) -> bool:
    """Return whether the kernels can convolve x (batch, input, y, x) with weight (output, input, 3, 3)."""
    if (
        x.ndim != 4
        or weight.shape[2:] != (3, 3)
        or weight.shape[1] != x.shape[1]
        or weight.device != x.device
    ):
        return False
    outputs, inputs = weight.shape[:2]
    features = [n for n in (outputs, inputs) if n % FEATURES == 0]
    few = [n for n in (outputs, inputs) if n in FEW]
    here = WIDTH > 0 and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    return here and bool(features) and len(features) + len(few) == 2


def convolve(x: Tensor, weight: Tensor, rectified: bool = False) -> Tensor:
    """Return the convolution of x, or of max(x, 0), with zeros around it; by the kernels where they fit.

    Parameters
    ----------
    x
        (batch, input, y, x).
    weight
        (output, input, 3, 3).
    rectified
        Convolve max(x, 0).

    Returns
    -------
    Tensor
        (batch, output, y, x), channels-last where the kernels made it.
    """
    if fits(x, weight):
        if rectified and set(weight.shape[:2]) & set(FEW):  # the kernels rectify between features only
            x, rectified = torch.relu(x), False
        found: Tensor = _convolve(x, weight, rectified)
        return found
    return plain(x, weight, rectified)


def plain(x: Tensor, weight: Tensor, rectified: bool = False) -> Tensor:
    """Return what `convolve` does, by PyTorch's own operators."""
    return F.conv2d(torch.relu(x) if rectified else x, weight, padding=1)


@torch.library.custom_op("mri_qpan::convolve", mutates_args=())
def _convolve(x: Tensor, weight: Tensor, rectified: bool) -> Tensor:
    x = _dense(x)
    outputs, inputs = weight.shape[:2]
    out = _like(x, outputs)
    threads = torch.get_num_threads()
    if inputs in FEW:
        strides = _strides(weight, 0, 1)
        _call("widen", _images(x, inputs, outputs), _at(x), _at(weight), strides, 0, _at(out), threads)
    elif outputs in FEW:
        strides = _strides(weight, 1, 0)
        _call("narrow", _images(x, outputs, inputs), _at(x), _at(weight), strides, 0, _at(out), threads)
    else:
        images, strides = _images(x, inputs, outputs), _strides(weight, 0, 1)
        _call("convolve", images, _at(x), _at(weight), strides, 0, int(rectified), None, _at(out), threads)
    return out


@_convolve.register_fake
def _(x: Tensor, weight: Tensor, rectified: bool) -> Tensor:
    return _like(x, weight.shape[0])


@torch.library.custom_op("mri_qpan::convolve_backward", mutates_args=())
def _convolve_backward(gradient: Tensor, x: Tensor, weight: Tensor, rectified: bool) -> tuple[Tensor, Tensor]:
    x, gradient = _dense(x), _dense(gradient)
    for_x, for_weight = _like(x, x.shape[1]), torch.empty_like(weight)
    outputs, inputs = weight.shape[:2]
    threads = torch.get_num_threads()
    if inputs in FEW:
        images = _images(x, inputs, outputs)
        strides, own = _strides(weight, 0, 1), _strides(for_weight, 0, 1)
        _call("narrow", images, _at(gradient), _at(weight), strides, 1, _at(for_x), threads)
        _call("correlate", images, _at(x), _at(gradient), _at(for_weight), own, 0, threads)
    elif outputs in FEW:
        images = _images(x, outputs, inputs)
        strides, own = _strides(weight, 1, 0), _strides(for_weight, 1, 0)
        _call("widen", images, _at(gradient), _at(weight), strides, 1, _at(for_x), threads)
        _call("correlate", images, _at(gradient), _at(x), _at(for_weight), own, 1, threads)
    else:
        strides, own = _strides(weight, 0, 1), _strides(for_weight, 0, 1)
        kept = _at(x) if rectified else None
        there, back = _images(x, inputs, outputs), _images(x, outputs, inputs)
        _call("convolve", back, _at(gradient), _at(weight), strides, 1, 0, kept, _at(for_x), threads)
        arguments = (_at(x), _at(gradient), _at(for_weight), own)
        _call("convolve_weight", there, *arguments, int(rectified), threads)
    return for_x, for_weight


@_convolve_backward.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor, rectified: bool) -> tuple[Tensor, Tensor]:
    return _like(x, x.shape[1]), torch.empty_like(weight)


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
    x, weight, ctx.rectified = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
    for_x, for_weight = _convolve_backward(gradient, *ctx.saved_tensors, ctx.rectified)
    return for_x, for_weight, None


_convolve.register_autograd(_backward, setup_context=_remember)


def _call(name: str, images: _Images, *arguments: Any) -> None:
    library = kernels.library()
    assert library is not None
    kernels.check(getattr(library, f"mri_qpan_{name}")(ctypes.byref(images), *arguments, WIDTH))


def _images(x: Tensor, inputs: int, outputs: int) -> _Images:
    return _Images(x.shape[0], *x.shape[2:], inputs, outputs)


def _dense(x: Tensor) -> Tensor:
    """Return `x` with channels last; a plane of one channel is so as it stands."""
    if x.shape[1] == 1:
        return x.contiguous()
    return x.contiguous(memory_format=torch.channels_last)


def _like(x: Tensor, channels: int) -> Tensor:
    shape = (x.shape[0], channels, *x.shape[2:])
    if channels == 1:
        return x.new_empty(shape)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _strides(weight: Tensor, first: int, second: int) -> Any:
    """Return the strides of a weight's axes in the order that the kernels take."""
    strides = weight.stride()
    return (ctypes.c_long * 4)(strides[first], strides[second], strides[2], strides[3])
