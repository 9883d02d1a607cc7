"""What a scanner's operator set: parameters in a text of JSON, of which one names the config."""

from __future__ import annotations

import json
from typing import Any

CHOICE = ("customconfig", "config")
"""Parameters that name a config: what was typed before what was chosen from a list, as in
python-ismrmrd-server."""

UNASKED = ("", "false", "none")
"""Values, in small letters, that ask for nothing: clients send every parameter that they know of."""


def config_in(text: str) -> str | None:
    """Return the config that a text of JSON asks for; None where it is another text, or asks for none."""
    parameters = _parameters_in(text)
    chosen = next((parameters[name] for name in CHOICE if parameters.get(name)), None)
    return None if chosen is None else str(chosen)


def without_effect(text: str) -> list[str]:
    """Return the names of the parameters in a text that were set and change nothing here."""
    return [
        name
        for name, value in _parameters_in(text).items()
        if name not in CHOICE and str(value).strip().lower() not in UNASKED
    ]


def _parameters_in(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)["parameters"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
