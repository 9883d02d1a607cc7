import torch
from typer.testing import CliRunner

from mri_qpan import models
from mri_qpan.cli.main import app
from mri_qpan.errors import ModelError
from mri_qpan.models import store
from mri_qpan.networks import ProximalNetwork, named_config

CARD = {
    "data": ["ixi_pd", "made up"],
    "training": {
        "recipe": "tiny",
        "steps": 3,
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
