"""Run the Triton kernels by Triton's interpreter, beside the plain layers; start with TRITON_INTERPRET=1.

Prints a line a comparison: what was compared, and its largest difference relative to the largest value. In
float32, since the interpreter's products know no bfloat16.
"""

import sys

import torch
from small_networks import kernel_network

from mri_qpan.encoding import Encoding
from mri_qpan.engines import gpu
from mri_qpan.penalties import PENALTIES

LAYERS = [
    (1, 1, PENALTIES, "filter", (9, 40)),
    (2, 2, ("l1", "scad"), "tensor", (2, 3)),
    (3, 2, PENALTIES, "filter", (3, 5)),
    (4, 1, ("mcp",), "filter", (8, 32)),
]
NETWORKS = [{"adaptive": True, "consistency": 2}, {"carry": False}, {"channels": 1, "exact": True}]


def made(**changes):
    network = kernel_network(**changes)
    for name, parameter in network.named_parameters():
        if "powers" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    for layer in network.layers:
        layer.convolutions["G"].weight.mul_(100)  # it starts small: the layers would hardly show
    network.refit()
    return network


def tell(what, found, expected):
    sys.stdout.write(f"{what} {float((found - expected).abs().max() / expected.abs().max())}\n")


def layers():
    for bits, channels, penalties, scale_per, shape in LAYERS:
        network = made(bits=bits, channels=channels, penalties=penalties, scale_per=scale_per)
        kernel = gpu.Fused(network, "cpu", torch.float32)
        r = torch.randn(2, channels, *shape)
        first, features = kernel(0, r, None)
        expected, carried, _ = network._work(network.layers[0], r, None, False, False)
        tell(f"image-{bits}-{channels}", first, expected)
        tell(f"features-{bits}-{channels}", features.values.permute(0, 3, 1, 2), carried)
        factors = torch.tensor([0.5, 2.0])
        second, _ = kernel(1, r, features.scaled(factors))
        carried = carried * factors.reshape(-1, 1, 1, 1)
        expected, _, _ = network._work(network.layers[1], r, carried, False, False)
        tell(f"second-{bits}-{channels}", second, expected)


def networks():
    shape = (1, 7, 6)
    encoding = Encoding(torch.rand(1, *shape[1:]) < 0.5)
    adjoint = encoding.adjoint(encoding.forward(torch.randn(shape, dtype=torch.complex64)))
    for more in NETWORKS:
        network = made(**more)
        given, normal = adjoint, encoding.normal
        if network.config.channels == 1:
            given, normal = adjoint.real.contiguous(), lambda x: encoding.normal(x.to(torch.complex64)).real
        expected = network(given, normal)
        network.run_through(gpu.Fused(network, "cpu", torch.float32))
        found = network(given, normal)
        assert not torch.equal(found, expected)  # another code worked it
        tell("network-" + next(iter(more)), found, expected)


if __name__ == "__main__":
    layers()
    networks()
