"""The fused kernel against the plain layer, with every width of vectors that this machine has."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import kernel_network

from mri_qpan import engines, models
from mri_qpan.encoding import Encoding, RealEncoding
from mri_qpan.engines import fused, kernels
from mri_qpan.models import store
from mri_qpan.penalties import PENALTIES

pytestmark = pytest.mark.skipif(
    kernels.width() == 0, reason="the fused kernel is not built here, or the processor lacks AVX2"
)
WIDTHS = [w for w in (256, 512) if w <= kernels.width()]
CARD = {"data": [], "training": {}, "figures": {}, "licence": "none"}
BOUND = 0.03
"""Largest normalised difference of what a layer adds to the image: features have 8 bits."""


def plain(network, index, r, carried):
    image, features, _ = network._work(network.layers[index], r, carried, False, False)
    return image, features


def values_of(features):
    return (features.units * features.steps[:, :, None, None]).permute(0, 3, 1, 2)


def difference(a, b):
    return float((a - b).norm() / b.norm().clamp_min(1e-20))


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)),
    bits=st.integers(1, 4),
    channels=st.sampled_from([1, 2]),
    which=st.sets(st.sampled_from(PENALTIES), min_size=1),
    scale_per=st.sampled_from(["tensor", "filter"]),
    vectors=st.sampled_from(WIDTHS or [256]),
    seed=st.integers(0, 1000),
)
def test_two_layers_equal_the_plain_ones(shape, bits, channels, which, scale_per, vectors, seed):
    penalties = tuple(name for name in PENALTIES if name in which)
    network = kernel_network(seed, bits=bits, channels=channels, penalties=penalties, scale_per=scale_per)
    kernel = fused.Fused(network, vectors)
    batch, *size = shape
    r = torch.randn(batch, channels, *size).contiguous(memory_format=torch.channels_last)
    first, features = kernel(0, r, None)
    expected, carried = plain(network, 0, r, None)
    # Against the picture's own size: a layer may add next to nothing.
    assert float((first - expected).norm()) < BOUND * float((expected - r).norm()) + 1e-3 * float(r.norm())
    values = values_of(features)
    assert float((values - carried).norm()) < 2 * BOUND * float(carried.norm()) + 1e-3 * float(r.norm())
    second, _ = kernel(1, r, features)
    expected, _ = plain(network, 1, r, values)
    assert float((second - expected).norm()) < BOUND * float((expected - r).norm()) + 1e-3 * float(r.norm())


@pytest.mark.parametrize("vectors", WIDTHS)
def test_threads_change_nothing(vectors):
    kernel = fused.Fused(kernel_network(), vectors)
    r = torch.randn(1, 2, 70, 33)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            first, features = kernel(0, r, None)
            results.append((kernel(1, first, features)[0], features.units))
    finally:
        torch.set_num_threads(before)
    for image, units in results[1:]:
        assert torch.equal(image, results[0][0])
        assert torch.equal(units, results[0][1])


@pytest.mark.parametrize("vectors", WIDTHS)
@pytest.mark.parametrize("gain", [0.0, 1e-3, 30.0, 1e4])
def test_images_of_any_size_are_worked(vectors, gain):
    """Steps follow each row's values: nothing is clipped, and an image leaves nothing behind for the next."""
    network = kernel_network(bits=2)
    kernel = fused.Fused(network, vectors)
    r = gain * torch.randn(1, 2, 24, 24)
    image, _ = kernel(0, r, None)
    expected, _ = plain(network, 0, r, None)
    assert float((image - expected).norm()) <= BOUND * float((expected - r).norm()) + 1e-4 * float(r.norm())
    fresh, _ = fused.Fused(network, vectors)(0, r, None)
    assert torch.equal(image, fresh)


@pytest.mark.parametrize("vectors", WIDTHS)
def test_a_bright_row_leaves_faint_ones_their_precision(vectors):
    network = kernel_network()
    kernel = fused.Fused(network, vectors)
    r = 1e-3 * torch.randn(1, 2, 40, 30)
    r[:, :, 20] *= 1e5
    image, _ = kernel(0, r, None)
    expected, _ = plain(network, 0, r, None)
    added, right = (x[:, :, :14] - r[:, :, :14] for x in (image, expected))
    assert difference(added, right) < 2 * BOUND


@pytest.mark.parametrize("vectors", WIDTHS)
def test_both_kinds_of_vectors_give_the_same_image(vectors):
    network, r = kernel_network(), torch.randn(1, 2, 33, 50)
    assert (
        difference(fused.Fused(network, vectors)(0, r, None)[0], fused.Fused(network, 256)(0, r, None)[0])
        < 1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_of_other_types_come_back_as_they_were(dtype):
    kernel = fused.Fused(kernel_network(channels=1))
    r = torch.randn(1, 1, 20, 20)
    image, _ = kernel(0, r.to(dtype), None)
    assert image.dtype == dtype
    assert difference(image.float(), kernel(0, r.to(dtype).float(), None)[0]) < 1e-2


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("consistency", "adaptive"), [(0, False), (2, False), (2, True)])
def test_a_whole_network_equals_the_plain_module(channels, consistency, adaptive):
    network = kernel_network(
        layers=4, channels=channels, consistency=consistency, start=2, step=0.5, adaptive=adaptive
    )
    for layer in network.layers:
        if adaptive:
            torch.nn.init.uniform_(layer.powers, 0.2, 0.6)
    mask = torch.rand(2, 31, 26) < 0.5
    encoding = RealEncoding(mask) if channels == 1 else Encoding(mask)
    adjoint = encoding.adjoint(torch.randn(2, 1, 31, 26, dtype=torch.complex64))
    with torch.no_grad():
        expected = network(adjoint, encoding.normal)
        network.fuse("cpu")
        image = network(adjoint, encoding.normal)
    assert 0 < difference(image, expected) < 0.03
    network.requires_grad_()
    assert network(adjoint, encoding.normal).requires_grad  # gradients take the plain way


def test_a_model_loads_into_the_engine_asked_for(tmp_path):
    network = kernel_network(layers=1)
    store.save(tmp_path / "m.safetensors", network, "m", CARD)
    encoding = Encoding(torch.rand(1, 20, 20) < 0.5)
    adjoint = encoding.adjoint(torch.randn(1, 1, 20, 20, dtype=torch.complex64))
    images = {}
    for engine in ("fused", "float32", "bfloat16"):
        model = models.load_model(str(tmp_path / "m.safetensors"), engine=engine)
        assert model.engine == engine
        images[engine] = model(adjoint, encoding.normal)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert twin.engine == engine
            assert torch.equal(twin(adjoint, encoding.normal), images[engine])
            assert (twin._kernel is not None) == (engine == "fused")
    assert 0 < difference(images["fused"], images["float32"]) < 1e-2
    assert difference(images["bfloat16"], images["float32"]) < 3e-2
    with pytest.raises(ValueError, match="choose from auto, fused"):
        models.load_model(str(tmp_path / "m.safetensors"), engine="cuda")


@pytest.mark.parametrize("change", [{"bits": None}, {"filters": 8}, {"layer": "pan", "carry": False}])
def test_the_kernel_declines_what_it_is_not_made_for(change):
    config = kernel_network(**change).config
    assert not fused.fits(config)
    assert engines.choose("auto", config, "cpu") != "fused"
    with pytest.raises(ValueError, match="32 filters"):
        engines.choose("fused", config, "cpu")


def test_without_the_kernel_pytorch_takes_over(monkeypatch):
    monkeypatch.setattr(kernels, "width", lambda: 0)
    assert engines.choose("auto", kernel_network().config, "cpu") in ("bfloat16", "float32")


def test_a_library_of_other_sources_is_not_used(monkeypatch):
    kernels.library.cache_clear()
    monkeypatch.setattr(kernels, "VERSION", -1)
    try:
        assert kernels.library() is None
    finally:
        kernels.library.cache_clear()


def test_a_copy_on_a_machine_without_the_kernel_goes_without(tmp_path, monkeypatch):
    network = kernel_network(layers=1)
    store.save(tmp_path / "m.safetensors", network, "m", CARD)
    stored = pickle.dumps(models.load_model(str(tmp_path / "m.safetensors"), engine="fused"))
    monkeypatch.setattr(fused, "fits", lambda config: False)
    twin = pickle.loads(stored)
    assert twin.engine == "float32"
    adjoint = torch.randn(1, 20, 20, dtype=torch.complex64)
    plain = models.load_model(str(tmp_path / "m.safetensors"), engine="float32")
    assert torch.equal(twin(adjoint, lambda x: x), plain(adjoint, lambda x: x))


def test_images_and_features_that_do_not_fit_are_refused():
    network = kernel_network(channels=2)
    kernel = fused.Fused(network)
    _, features = kernel(0, torch.randn(1, 2, 8, 8), None)
    with pytest.raises(ValueError, match=r"images \(1, 1, 8, 8\) do not fit"):
        kernel(0, torch.randn(1, 1, 8, 8), None)
    with pytest.raises(ValueError, match=r"images \(1, 2, 40, 40\) do not fit"):
        kernel(1, torch.randn(1, 2, 40, 40), features)


def test_a_gradient_that_the_kernel_would_lose_is_refused():
    network = kernel_network(bits=3).requires_grad_(False)
    network.fuse("cpu")
    mps = torch.randn(1, 2, 24, 20, dtype=torch.complex64).requires_grad_()
    encoding = Encoding(torch.rand(1, 24, 20) < 0.5, mps)
    adjoint = encoding.adjoint(torch.randn(1, 2, 24, 20, dtype=torch.complex64))
    with pytest.raises(RuntimeError, match="takes no gradient of the maps alone"):
        network(adjoint.detach(), lambda x: encoding.adjoint(encoding.forward(x)))
    network(adjoint, lambda x: encoding.adjoint(encoding.forward(x))).abs().sum().backward()
    assert mps.grad is not None


def test_changed_weights_are_packed_again():
    network = kernel_network(bits=3)
    encoding = Encoding(torch.rand(1, 24, 20) < 0.5)
    adjoint = torch.randn(1, 24, 20, dtype=torch.complex64)
    network.fuse("cpu")
    with torch.no_grad():
        before = network(adjoint, encoding.normal)
        for parameter in network.parameters():
            parameter.mul_(1.5)
        network.refit()
        found = network(adjoint, encoding.normal)
        network._kernel = None
        plain = network(adjoint, encoding.normal)
    assert difference(found, plain) < BOUND
    assert difference(before, plain) > 2 * BOUND


ALMOST_NO_MEMORY = """
import resource, sys, torch
from pathlib import Path
from mri_qpan.engines.fused import Fused
from mri_qpan.networks import NetworkConfig, ProximalNetwork

height, width, spare, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)
fused = Fused(ProximalNetwork(NetworkConfig(layers=1, filters=32, bits=3)))
fused(0, torch.zeros(1, 2, 64, 64), None)
image = torch.zeros(1, 2, height, width)
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (spare << 20), -1))
try:
    fused(0, image, None)
except MemoryError as error:
    print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux what a process holds")
@pytest.mark.parametrize("arguments", [(1, 2000000, 400, 1), (32, 200000, 600, 2)])
def test_no_memory_in_a_thread_is_an_exception(arguments):
    command = [sys.executable, "-c", ALMOST_NO_MEMORY, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "no memory for a kernel's buffers\n", done.stderr
