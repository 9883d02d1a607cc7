"""The label by which OpenRecon, a scanner's own host for containers, knows a reconstruction.

Its rules are those of the published schema, version 1.1.0: what the scanner shows, what the container needs,
and what the operator can choose. The choice arrives as JSON in a text after the header (see `conversation`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mri_qpan._version import __version__
from mri_qpan.errors import InputError

KEY = "com.siemens-healthineers.magneticresonance.openrecon.metadata:1.1.0"
"""Name of the image's label; its value is the JSON in base64."""

MEMORY_MIB = 4096
CORES = 2
SEMANTIC = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)([-+][0-9A-Za-z.+-]+)?")

UNREGULATED = (
    "production_identifier",
    "manufacturer_address",
    "made_in",
    "manufacture_date",
    "material_number",
    "gtin",
    "udi",
)


def label(configs: Sequence[str], port: int = 9002) -> dict[str, Any]:
    """Return the label of a container that runs `mri-qpan serve`.

    Parameters
    ----------
    configs
        Names of the reconstructions to choose from, the default one first.
    port
        Where the server listens in the container.

    Raises
    ------
    InputError
        If there is no config, or this package's version is none that OpenRecon takes.
    """
    if not configs:
        raise InputError("an OpenRecon label needs a config to choose")
    if SEMANTIC.fullmatch(__version__) is None:
        raise InputError(f"OpenRecon takes versions such as 1.2.3 or 1.2.3-rc.1, not {__version__}")
    advice = "For research. Not a medical device: its images are not for diagnosis or treatment."
    return {
        "general": {
            "name": {"en": "mri-qpan"},
            "version": __version__,
            "vendor": "mri-qpan",
            "information": {
                "en": "Undersampled k-space to images with a quantized proximal averaging network. " + advice
            },
            "id": "mriqpan",
            "regulatory_information": dict.fromkeys(UNREGULATED, "")
            | {
                "device_trade_name": "mri-qpan",
                "safety_advices": advice,
                "special_operating_instructions": "Compare with the method wavelet where it matters.",
                "additional_relevant_information": "Networks can invent or remove detail.",
            },
        },
        "reconstruction": {
            "transfer_protocol": {"protocol": "ISMRMRD", "version": "1.4.1"},
            "port": port,
            "emitter": "raw",
            "injector": "image",
            "can_process_adjustment_data": False,
            "can_use_gpu": True,
            "min_count_required_gpus": 0,
            "min_required_gpu_memory": 0,
            "min_count_required_cpu_cores": CORES,
            "min_required_memory": MEMORY_MIB,
            "content_qualification_type": "RESEARCH",
        },
        "parameters": [
            {
                "type": "choice",
                "id": "config",
                "label": {"en": "Reconstruction"},
                "information": {"en": "The method, or a configuration of this site."},
                "values": [{"id": name, "name": {"en": name}} for name in configs],
                "default": configs[0],
            }
        ],
    }
