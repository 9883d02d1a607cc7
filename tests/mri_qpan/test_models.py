import json
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from mri_qpan import models
from mri_qpan.cli.main import app
from mri_qpan.encoding import Encoding
from mri_qpan.errors import ModelError
from mri_qpan.models import card, store
from mri_qpan.networks import NetworkConfig, ProximalNetwork, build, named_config

CARD = {"data": ["made up"], "training": {"steps": 1}, "figures": {}, "licence": "none"}


def write(path, bits=2, **changes):
    torch.manual_seed(0)
    network = ProximalNetwork(named_config("pan+", layers=2, filters=4, bits=bits, **changes)).eval()
    store.save(path, network, "small", CARD)
    return network


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"training": "3 epochs"}, "no dict under training"),
        ({"data": "in-house"}, "no list under data"),
        ({"figures": {"validation": 38}}, "figures that are no dict"),
    ],
)
def test_a_card_of_another_kind_is_refused(tmp_path, monkeypatch, change, words):
    network = ProximalNetwork(named_config("pan+", layers=1, filters=4))
    with pytest.raises(ValueError, match=words):
        store.save(tmp_path / "m.safetensors", network, "small", CARD | change)
    monkeypatch.setattr(store, "_wrong_in", lambda card: "")
    store.save(tmp_path / "m.safetensors", network, "small", CARD | change)
    monkeypatch.undo()
    with pytest.raises(ModelError, match=words):
        models.load_model(str(tmp_path / "m.safetensors"))


@pytest.mark.parametrize("bits", [None, 1, 2, 3, 4])
@pytest.mark.parametrize("scale_per", ["tensor", "filter"])
def test_a_stored_network_gives_the_same_image_to_the_bit(tmp_path, bits, scale_per):
    network = write(tmp_path / "m.safetensors", bits, scale_per=scale_per)
    model = models.load_model(str(tmp_path / "m.safetensors"), engine="float32")
    encoding = Encoding(torch.rand(1, 9, 8) < 0.5)
    adjoint = torch.randn(1, 9, 8, dtype=torch.complex64)
    with torch.no_grad():
        assert torch.equal(model(adjoint, encoding.normal), network(adjoint, encoding.normal))
    assert model.name == "small"
    assert model.card == CARD
    assert len(model.sha256) == 64
    assert not model.training
    store.save(tmp_path / "again.safetensors", model, "small", CARD)
    assert models.load_model(str(tmp_path / "again.safetensors")).sha256 == model.sha256


def test_a_card_tells_the_only_masks_of_a_training(tmp_path):
    path = tmp_path / "m.safetensors"
    network = write(path)
    seen = {"ratios": [0.18, 0.52], "largest_noise": 0.0}
    for spokes, words in (([55, 85], "on pseudo-radial masks of 55, 85 spokes alone"), ([], "18% to 52%")):
        store.save(path, network, "small", CARD | {"training": {"steps": 1, **seen, "spokes": spokes}})
        text = card.describe(path)
        assert words in text
        assert ("spokes" in text) == bool(spokes)


@pytest.mark.parametrize(
    ("system", "words"),
    [
        ("pan+", "PAN+ network (l1, mcp, scad)"),
        ("ista-net", "unfolded ISTA-Net of"),
        ("ista-net+", "unfolded ISTA-Net+ of"),
        ("admm-net", "divides in k-space with one coil"),
        ("admm-csnet", "Every reconstruction takes 6 conjugate-gradient steps"),
    ],
)
def test_a_card_names_the_network_as_its_papers_do(tmp_path, system, words):
    path = tmp_path / "m.safetensors"
    store.save(path, build(named_config(system, layers=1)), "m", CARD)
    assert words in card.describe(path)


def test_weights_take_their_bits_and_no_more(tmp_path):
    config = named_config("pan+", filters=32, bits=1)
    store.save(tmp_path / "m.safetensors", ProximalNetwork(config), "m", CARD)
    weights = 11 * (4 * 9 * 32 * 32 + 2 * 9 * 2 * 32)
    assert (tmp_path / "m.safetensors").stat().st_size < weights / 8 + 30_000


def rewrite(source, target, tensors=None, header=None, metadata=None):
    """Write a changed copy of a model file."""
    with safe_open(source, "pt") as file:
        old = json.loads(file.metadata()["mri_qpan"])
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    stored = tensors(stored) if tensors else stored
    changed = {**old, **(header or {}), "digest": store._digest(stored)}
    changed = {key: value for key, value in changed.items() if value is not None}
    save_file(stored, target, metadata if metadata is not None else {"mri_qpan": json.dumps(changed)})


def drop_one(tensors):
    tensors.popitem()
    return tensors


def infinite(tensors):
    return {k: torch.full_like(v, torch.inf) if "raw_step" in k else v for k, v in tensors.items()}


def negative_scale(tensors):
    return {k: -v if k.endswith(".scale") else v for k, v in tensors.items()}


def wrong_shape(tensors):
    return {k: torch.zeros(7) if "raw_step" in k else v for k, v in tensors.items()}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"tensors": drop_one}, "tensors"),
        ({"tensors": infinite}, "finite"),
        ({"tensors": negative_scale}, "positive"),
        ({"tensors": wrong_shape}, "configured"),
        ({"header": {"format": 2}}, "update"),
        ({"header": {"config": {"layer": "pan+"}}}, "fields"),
        ({"header": {"name": None}}, "header"),
        ({"metadata": {}}, "header"),
        ({"metadata": {"mri_qpan": "{"}}, "header"),
        ({"metadata": {"mri_qpan": "[1]"}}, "header"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused(tmp_path, change, word):
    write(tmp_path / "m.safetensors")
    rewrite(tmp_path / "m.safetensors", tmp_path / "bad.safetensors", **change)
    with pytest.raises(ModelError, match=word):
        models.load_model(str(tmp_path / "bad.safetensors"))


@settings(deadline=None, max_examples=60)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_damaged_files_end_in_our_error_or_the_same_weights(tmp_path_factory, where, bit, cut):
    folder = tmp_path_factory.mktemp("damage")
    write(folder / "m.safetensors")
    content = bytearray((folder / "m.safetensors").read_bytes())
    at = int(where * len(content))
    if cut:
        content = content[:at]
    else:
        content[at] ^= 1 << bit
    (folder / "bad.safetensors").write_bytes(bytes(content))
    intact = models.load_model(str(folder / "m.safetensors"))
    try:
        model = models.load_model(str(folder / "bad.safetensors"))
    except ModelError:
        return
    for name, value in model.state_dict().items():
        assert torch.equal(value, intact.state_dict()[name])


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("text.safetensors", "none.safetensors"):
        with pytest.raises(ModelError, match=name):
            models.load_model(str(tmp_path / name))
    with pytest.raises(ModelError, match=r"choose from|did you mean"):
        models.load_model("qpan+-5bit")


def test_a_card_must_be_whole(tmp_path):
    with pytest.raises(ValueError, match="licence"):
        store.save(tmp_path / "m.safetensors", ProximalNetwork(NetworkConfig(layers=1)), "m", {"data": []})


@pytest.mark.parametrize("name", models.list_models())
def test_shipped_models_load_and_say_what_they_are(name):
    model = models.load_model(name)
    assert model.name == name
    assert set(model.card) >= set(store.CARD_FIELDS)
    words = models.model_path(name).with_suffix(".md").read_text()
    assert model.sha256[:12] in words


def test_shipped_models_stay_small():
    files = [models.model_path(name) for name in models.list_models()]
    assert sum(path.stat().st_size for path in files) < 5_000_000
    if files:
        assert models.DEFAULT in models.list_models()


def test_a_changed_configuration_is_found(tmp_path):
    path = tmp_path / "m.safetensors"
    write(path, consistency=3)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["mri_qpan"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert store.load(path).config.consistency == 3
    header["config"]["consistency"] = 1  # the tensors are the same
    save_file(tensors, path, {"mri_qpan": json.dumps(header)})
    with pytest.raises(ModelError, match="configuration was changed"):
        store.load(path)
    del header["config_digest"]  # as files had none at first
    save_file(tensors, path, {"mri_qpan": json.dumps(header)})
    assert store.load(path).config.consistency == 1


@pytest.mark.parametrize("text", ["[" * 200_000, "9" * 5000, "{"])
def test_a_header_that_json_cannot_be_is_refused(tmp_path, text):
    save_file({"a": torch.zeros(1)}, tmp_path / "m.safetensors", {"mri_qpan": text})
    with pytest.raises(ModelError, match="not a model of this package"):
        store.load(tmp_path / "m.safetensors")
    assert models._channels(tmp_path / "m.safetensors") is None


def test_weights_of_another_type_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    write(path, None)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).bfloat16() for name in file.keys()}  # noqa: SIM118
    header = json.loads(metadata["mri_qpan"])
    header["digest"] = store._digest(tensors)
    save_file(tensors, path, {"mri_qpan": json.dumps(header)})
    with pytest.raises(ModelError, match=r"bfloat16 .* not as configured"):
        store.load(path)


def test_loading_minds_no_default_and_moves_no_random_numbers(tmp_path):
    path = tmp_path / "m.safetensors"
    write(path)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    torch.set_default_dtype(torch.float64)
    try:
        model = store.load(path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert torch.equal(torch.rand(2), expected)


class TestFolder:
    def test_what_is_no_model_there_hides_none(self, tmp_path, monkeypatch):
        monkeypatch.setenv("MRI_QPAN_MODELS", str(tmp_path))
        (tmp_path / "old.safetensors").symlink_to("/nonexistent")
        (tmp_path / "folder.safetensors").mkdir()
        (tmp_path / "cut.safetensors").write_bytes(b"cut")
        names = models.list_models()
        assert models.DEFAULT in names
        assert set(names) - set(models.shipped_models()) == {"cut"}
        assert models.load_model(models.DEFAULT).name == models.DEFAULT
        result = CliRunner().invoke(app, ["models"], catch_exceptions=False)
        assert result.exit_code == 0
        assert "cut" in result.output
        assert "damaged" in result.output
        assert models.DEFAULT in result.output

    def test_shipped_models_need_no_home(self, monkeypatch):
        def homeless():
            raise RuntimeError("Could not determine home directory.")

        for name in ("MRI_QPAN_MODELS", "XDG_DATA_HOME", "LOCALAPPDATA"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(models.Path, "home", homeless)
        assert models.model_path(models.DEFAULT).is_file()
        with pytest.raises(ModelError, match="set MRI_QPAN_MODELS"):
            models.user_folder()

    def test_an_empty_variable_is_none(self, tmp_path, monkeypatch):
        monkeypatch.setenv("MRI_QPAN_MODELS", "")
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
        assert models.user_folder() == tmp_path / "mri-qpan" / "models"


@pytest.mark.skipif(os.name == "nt", reason="no such permissions on Windows")
def test_a_model_file_is_as_readable_as_any(tmp_path):
    write(tmp_path / "m.safetensors")
    (tmp_path / "other").touch()
    mode = (tmp_path / "other").stat().st_mode
    assert (tmp_path / "m.safetensors").stat().st_mode == mode
