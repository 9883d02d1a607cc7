import hashlib
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
from typer.testing import CliRunner

from mri_qpan import models
from mri_qpan.cli.main import app
from mri_qpan.errors import InputError, ModelError, MriQpanError
from mri_qpan.methods import get_method
from mri_qpan.models import store
from mri_qpan.networks import ProximalNetwork, named_config

CARD = {
    "data": ["ixi_pd", "made up"],
    "training": {
        "recipe": "tiny",
        "steps": 3,
        "steps_before": 2000,
        "planned_steps": 4,
        "minutes": 0.1,
        "machine": "here",
        "version": "0",
    },
    "figures": {"validation": {"psnr": 33.25}},
    "licence": "none",
}


def test_the_shipped_models_are_listed():
    result = CliRunner().invoke(app, ["models"])
    assert result.exit_code == 0
    for name in models.list_models():
        assert name in result.output


def test_a_card_says_what_the_header_holds(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "small.safetensors"
    store.save(path, ProximalNetwork(named_config("pan+", layers=2, filters=4, bits=2)), "small", CARD)
    result = CliRunner().invoke(app, ["models", str(path)])
    assert result.exit_code == 0
    for word in ("# small", "2-bit", "IXI", "CC BY-SA", "made up", "3 steps of 4", "33.25", "l1, mcp, scad"):
        assert word in result.output
    assert models.load_model(str(path)).sha256 in result.output


def test_an_unknown_model_is_named():
    result = CliRunner().invoke(app, ["models", "qpan+-7bit"])
    assert isinstance(result.exception, ModelError)
    assert result.exception.exit_code == 2


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MRI_QPAN_MODELS", str(tmp_path / "known"))
    return tmp_path / "known"


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "elsewhere" / "any.safetensors"
    path.parent.mkdir()
    store.save(path, ProximalNetwork(named_config("pan+", layers=1, filters=4, channels=1)), "mine", CARD)
    return path


def fetch(source, sha256):
    return CliRunner().invoke(app, ["models", "fetch", str(source), "--sha256", sha256])


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_fetched_model_is_known_by_its_name(model, own_folder):
    result = fetch(model, digest(model).upper())
    assert result.exit_code == 0, result.output
    (row,) = (line for line in CliRunner().invoke(app, ["models"]).output.splitlines() if "mine" in line)
    assert "2,003" in row  # all steps on the way to it
    assert models.load_model("mine").sha256 == digest(model)
    assert models.list_models(channels=1)[-1] == "mine"
    assert "mine" not in models.list_models(channels=2)
    assert [path.name for path in own_folder.iterdir()] == ["mine.safetensors"]


def test_a_model_comes_from_a_web_server(model, own_folder):
    handler = partial(SimpleHTTPRequestHandler, directory=str(model.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert fetch(f"{address}/any.safetensors", digest(model)).exit_code == 0
        missing = fetch(f"{address}/none.safetensors", digest(model))
        server.shutdown()
    assert "404" in str(missing.exception)
    assert (own_folder / "mine.safetensors").read_bytes() == model.read_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("hash", "another file, or damaged"),
        ("digits", "64 hexadecimal digits"),
        ("missing", "cannot be read"),
        ("text", "safetensors"),
        ("large", "larger than any model"),
        ("scheme", "cannot be read"),
        ("name", "called qpan+-3bit ships"),
    ],
)
def test_what_is_not_the_model_asked_for_is_refused(model, own_folder, monkeypatch, change, words):
    source, sha256 = str(model), digest(model)
    if change == "hash":
        sha256 = "0" * 64
    elif change == "digits":
        sha256 = "12"
    elif change == "missing":
        source = str(model.with_name("none"))
    elif change == "text":
        model.write_text("nothing")
        sha256 = digest(model)
    elif change == "name":
        network = ProximalNetwork(named_config("pan+", layers=1, filters=4))
        store.save(model, network, "qpan+-3bit", CARD)
        sha256 = digest(model)
    elif change == "large":
        monkeypatch.setattr("mri_qpan.models.fetch.MAX_BYTES", 100)
    else:
        source = "http://[broken"
    result = fetch(source, sha256)
    assert isinstance(result.exception, MriQpanError)
    assert words in str(result.exception)
    assert not list(own_folder.glob("*"))


def test_a_shipped_model_is_not_replaced_by_a_fetched_one(model, own_folder):
    own_folder.mkdir()
    shutil.copy(model, own_folder / f"{models.DEFAULT}.safetensors")
    assert models.load_model(models.DEFAULT).name == models.DEFAULT


def test_a_model_for_real_images_takes_no_measurement(model):
    with pytest.raises(InputError, match="benchmark brain"):
        get_method(str(model))
