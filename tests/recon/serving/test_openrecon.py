"""The label for OpenRecon, by the rules of its published schema (1.1.0), written down here anew."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from mri_qpan._version import __version__
from mri_qpan.cli.main import app
from mri_qpan.errors import InputError
from mri_qpan.methods import method_names
from mri_qpan.recon.serving import openrecon

ENGLISH = {"type": "object", "required": ["en"], "properties": {"en": {"type": "string"}}}


def closed(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [*required],
        "additionalProperties": False,
        "properties": required | optional,
    }


TEXT, COUNT, TRUTH = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
REGULATED = ("device_trade_name", "production_identifier", "manufacturer_address", "made_in", "gtin", "udi")
REGULATED += ("manufacture_date", "material_number", "safety_advices", "special_operating_instructions")
REGULATED += ("additional_relevant_information",)
GENERAL = closed(
    {
        "name": ENGLISH,
        "version": {"type": "string", "pattern": r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)([-+].*)?$"},
        "vendor": TEXT,
        "information": ENGLISH,
        "id": TEXT,
        "regulatory_information": closed(dict.fromkeys(REGULATED, TEXT)),
    }
)
RECONSTRUCTION = closed(
    {
        "transfer_protocol": closed({"protocol": {"const": "ISMRMRD"}, "version": {"const": "1.4.1"}}),
        "port": {"type": "integer"},
        "emitter": {"enum": ["raw", "image"]},
        "injector": {"enum": ["compleximage", "image"]},
        "can_use_gpu": TRUTH,
        "min_required_memory": COUNT,
        "min_count_required_cpu_cores": {"type": "integer", "minimum": 1},
    },
    can_process_adjustment_data=TRUTH,
    min_count_required_gpus=COUNT,
    min_required_gpu_memory=COUNT,
    content_qualification_type={"enum": ["PRODUCT", "SERVICE", "RESEARCH"]},
)
CHOICE = closed(
    {
        "type": {"const": "choice"},
        "id": {"type": "string", "pattern": "^[A-Za-z0-9]+$"},
        "label": ENGLISH,
        "default": TEXT,
        "values": {"type": "array", "minItems": 1, "items": closed({"id": TEXT, "name": ENGLISH})},
    },
    information=ENGLISH,
)
PARAMETERS = {"type": "array", "maxItems": 14, "uniqueItems": True, "items": CHOICE}
SCHEMA = closed({"general": GENERAL, "reconstruction": RECONSTRUCTION, "parameters": PARAMETERS})


def test_the_command_writes_what_the_server_knows(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('method = "wavelet"\n')
    out = tmp_path / "label.json"
    arguments = ["openrecon-label", "-o", str(out), "--config-dir", str(tmp_path)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert openrecon.KEY in result.output
    found = json.loads(out.read_text())
    jsonschema.Draft7Validator(SCHEMA).validate(found)
    assert found["general"]["version"] == __version__
    (config,) = found["parameters"]
    names = [value["id"] for value in config["values"]]
    assert names == ["default", *method_names(), "site"]
    assert config["default"] == "default"


def test_what_the_rules_refuse() -> None:
    good = openrecon.label(["default"])
    for spoil in (
        lambda label: label["general"].pop("id"),
        lambda label: label["parameters"][0].update(id="a-b"),
        lambda label: label["reconstruction"].update(injector="raw"),
        lambda label: label.update(more=1),
    ):
        spoilt = json.loads(json.dumps(good))
        spoil(spoilt)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft7Validator(SCHEMA).validate(spoilt)


def test_labels_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="needs a config"):
        openrecon.label([])
    monkeypatch.setattr(openrecon, "__version__", "0.2.0.dev1")
    with pytest.raises(InputError, match=r"not 0\.2\.0\.dev1"):
        openrecon.label(["default"])
