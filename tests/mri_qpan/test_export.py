"""Exported files against the networks that they were made of."""

import json
import shutil
import subprocess

import numpy as np
import onnx
import pytest
import torch
from small_networks import CARD, measurement, shaken, shipped_config

from mri_qpan.errors import InputError, ReconError
from mri_qpan.export import check, export, graph
from mri_qpan.models import DEFAULT, list_models, load_model, store
from mri_qpan.networks import named_config
from mri_qpan.networks.convolution import Convolution
from mri_qpan.nn import Reconstruction

CONFIGS = {
    "shipped": shipped_config(),
    "full precision": shipped_config(bits=None, scale_per="tensor"),
    "one scale": shipped_config(bits=1, scale_per="tensor", carry=False),
    "not adaptive": shipped_config(adaptive=False, floor=False, start=0),
    "published": named_config("pan+", layers=2, filters=4),
    "learned shares": named_config("pan+", layers=2, filters=4, shares="learned"),
    "published pan": named_config("pan", layers=2, filters=4),
    "ista-net+": named_config("ista-net+", layers=2, filters=4, bits=4),
}


def saved(folder, config, name="test"):
    path = folder / "model.safetensors"
    store.save(path, shaken(config), name, CARD)
    return str(path)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_onnx_runtime_gives_the_networks_image_at_every_size(tmp_path, config):
    path = tmp_path / "model.onnx"
    network = export(saved(tmp_path, config), path)
    for batch, coils, shape in [(2, 3, (32, 20)), (1, 1, (17, 31))]:
        problem = measurement(batch, coils, shape)
        assert relative(check.run(path, *problem), Reconstruction(network)(*problem)) < 2e-5


def test_the_onnx_file_says_what_it_is_and_holds_the_integers(tmp_path):
    path = tmp_path / "model.onnx"
    network = export(DEFAULT, path)
    model = onnx.load(path)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", graph.OPSET)]
    said = {p.key: p.value for p in model.metadata_props}
    assert said["name"] == DEFAULT
    assert said["sha256"] == network.sha256 == load_model(DEFAULT).sha256
    assert said["licence"] == network.card["licence"]
    assert "kspace" in said["usage"]
    assert [i.name for i in model.graph.input] == ["kspace", "mps", "mask"]
    kept = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    integers = kept["layers.0.H1.integers"]
    assert integers.dtype == np.int8
    assert set(np.unique(abs(integers))) <= {1, 3, 5, 7}
    weight = kept["layers.0.H1.scale"].reshape(-1, 1, 1, 1) * integers
    assert np.array_equal(weight, network.layers[0].convolutions["H1"]().numpy())


def test_a_torch_program_gives_the_networks_image_at_other_sizes(tmp_path):
    path = tmp_path / "model.pt2"
    network = export(saved(tmp_path, shipped_config(layers=1, start=1, consistency=1)), path)
    files = {"mri_qpan.json": ""}
    program = torch.export.load(path, extra_files=files).module()
    assert json.loads(files["mri_qpan.json"])["sha256"] == network.sha256
    for batch, coils, shape in [(1, 4, (48, 33)), (3, 1, (32, 64))]:
        problem = measurement(batch, coils, shape)
        assert relative(program(*problem), Reconstruction(network)(*problem)) < 2e-5


def test_a_file_that_differs_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    network = export(saved(tmp_path, shipped_config()), path)
    with torch.no_grad():
        network.layers[0].convolutions["G"].weight.mul_(-1)
    with pytest.raises(ReconError, match="differs"):
        check.error(path, network)


MAIN = """\
#include "model.h"
#include <stdio.h>

int main(void)
{
    for (int c = 0; c < PREFIX_CONVOLUTIONS; c++) {
        const qpan_convolution *convolution = &prefix_convolutions[c];
        fprintf(stderr, "%s\\n", convolution->name);
        for (size_t i = 0; i < (size_t)convolution->outputs * convolution->inputs * 9; i++) {
            const float weight = qpan_weight(convolution, PREFIX_BITS, i);
            const int8_t integer = qpan_integer(convolution, PREFIX_BITS, i);
            fwrite(&weight, sizeof weight, 1, stdout);
            fwrite(&integer, 1, 1, stdout);
        }
    }
    fwrite(prefix_1_lambda, sizeof(float), 3, stdout);
    fwrite(prefix_1_carry, sizeof(float), sizeof prefix_1_carry / sizeof(float), stdout);
    fwrite(prefix_floor, sizeof(float), 2, stdout);
    return 0;
}
"""
QUANTIZED = [name for name in list_models(channels=2) if name != "qpan+-fp"]
LANGUAGES = {"cc": ("c", "-std=c99"), "c++": ("cpp", "-std=c++17")}


@pytest.mark.parametrize("compiler", LANGUAGES)
@pytest.mark.parametrize("name", [*QUANTIZED, "4bit"])
def test_a_compiled_header_decodes_every_weight_bit_for_bit(tmp_path, name, compiler):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    prefix = name.replace("+-", "p_") if name in QUANTIZED else "my_4bit"
    model = name if name in QUANTIZED else saved(tmp_path, shipped_config(bits=4), "My 4bit")
    network = export(model, tmp_path / "model.h")
    suffix, standard = LANGUAGES[compiler]
    source = tmp_path / f"main.{suffix}"
    source.write_text(MAIN.replace("PREFIX", prefix.upper()).replace("prefix", prefix))
    words = [compiler, standard, "-Wall", "-Wextra", "-pedantic", "-Werror", source, "-o", tmp_path / "main"]
    subprocess.run(words, check=True, timeout=120)
    done = subprocess.run([tmp_path / "main"], check=True, capture_output=True, timeout=60)
    kinds = {n: m for n, m in network.named_modules() if isinstance(m, Convolution)}
    assert done.stderr.decode().split() == [n.replace("convolutions.", "") for n in kinds]
    expected = b""
    for convolution in kinds.values():
        weight = convolution().flatten().numpy()
        pairs = np.empty(weight.size, [("weight", "<f4"), ("integer", "i1")])
        scale = convolution.scale.expand_as(convolution.weight).flatten().numpy()
        pairs["weight"], pairs["integer"] = weight, np.rint(weight / scale)
        expected += pairs.tobytes()
    for values in (network.layers[1].thresholds()[0], network.layers[1].carry, network.floor):
        expected += values.detach().numpy().tobytes()
    assert done.stdout == expected


@pytest.mark.parametrize("compiler", LANGUAGES)
def test_two_headers_of_like_names_and_hostile_texts_compile_together(tmp_path, compiler):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    card = {**CARD, "licence": "any */ /* */* /*/ ???/\n/ \\\n*??/\n/ int x;"}
    for index, name in enumerate(["a+", "a++"]):
        path = tmp_path / f"{index}.safetensors"
        store.save(path, shaken(shipped_config(bits=2)), name, card)
        export(str(path), tmp_path / f"{index}.h")
    suffix, standard = LANGUAGES[compiler]
    source = tmp_path / f"both.{suffix}"
    source.write_text(
        '#include "0.h"\n#include "1.h"\n'
        "int main(void) { return AP_BITS + APP_BITS + (int)qpan_integer(ap_convolutions, 2, 0)"
        " + (int)qpan_weight(app_convolutions, 2, 0) > 99; }\n"
    )
    words = [compiler, standard, "-Wall", "-Wextra", "-pedantic", "-Werror", "-Wno-unused-const-variable"]
    subprocess.run([*words, source, "-o", tmp_path / "both"], check=True, timeout=120)
    subprocess.run([tmp_path / "both"], check=True, timeout=60)
    assert '"bits": 2' in (tmp_path / "0.h").read_text()


@pytest.mark.parametrize("unit", [1e-30, 1e-22, 1e18, 1e25])
def test_onnx_knows_no_unit_and_no_sample_that_was_not_acquired(tmp_path, unit):
    path = tmp_path / "model.onnx"
    network = export(saved(tmp_path, shipped_config()), path)
    kspace, mps, mask = measurement(1, 2, (32, 20))
    expected = Reconstruction(network)(kspace, mps, mask)
    spoiled = torch.where(mask[:, None], kspace * unit, complex("nan"))
    assert relative(check.run(path, spoiled, mps, mask) / unit, expected) < 2e-5


def test_what_cannot_be_exported_is_said(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"\.onnx, \.pt2, \.h"):
        export(DEFAULT, tmp_path / "model.tflite")
    with pytest.raises(InputError, match="full-precision"):
        export("qpan+-fp", tmp_path / "model.h")
    with pytest.raises(InputError, match="complex"):
        export(saved(tmp_path, named_config("pan", channels=1, layers=1, filters=2)), tmp_path / "model.h")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"mri-qpan\[export\]"):
        export(DEFAULT, tmp_path / "model.onnx")
    assert not list(tmp_path.glob("model.[oth]*"))
