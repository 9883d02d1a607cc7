"""What Prometheus is told, over HTTP."""

import socket
import urllib.request
from pathlib import Path
from threading import Event

import pytest
from archives import free_port
from batches import ZERO_FILLED, raw
from mrd_files import line
from mrd_sessions import KSPACE, SLICE, XML, images, talk
from prometheus_client.parser import text_string_to_metric_families

from mri_qpan.errors import InputError
from mri_qpan.recon.batch.inline import Inline
from mri_qpan.recon.batch.inputs import find_inputs
from mri_qpan.recon.batch.outbox import Outbox
from mri_qpan.recon.batch.run import run_batch
from mri_qpan.recon.metrics import FilesMeter, Meter, ServerMeter, metered
from mri_qpan.recon.serving.mrd_stream import ConfigFile, HeaderText


def scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels
    }


def test_a_server(serve) -> None:
    port = free_port()
    with metered(ServerMeter, "127.0.0.1", port) as meter:
        address = serve(meter=meter)
        assert scrape(port)["mri_qpan_images_total"] == 0
        for _ in range(2):
            assert len(images(talk(address, ConfigFile("default"), HeaderText(XML), *SLICE))) == 1
        talk(address, ConfigFile("default"), HeaderText(XML), line(KSPACE[:, 0], ky=500))
        found = scrape(port)
        assert found["mri_qpan_images_total"] == 2
        assert found["mri_qpan_image_latency_seconds_count"] == 2
        assert 0 < found["mri_qpan_image_latency_seconds_sum"] < 60
        assert found["mri_qpan_errors_total"] == 1
        assert found["mri_qpan_sessions_total"] == 3
        assert found["mri_qpan_images_waiting"] == 0
        if Path("/proc/self/stat").exists():
            assert found["process_resident_memory_bytes"] > 2**24
    with pytest.raises(OSError, match="refused"):
        scrape(port)


def test_a_batch(tmp_path: Path) -> None:
    for number in range(3):
        raw(tmp_path / f"in/s{number}.h5", number)
    (tmp_path / "in/bad.h5").write_bytes(b"no")
    port, seen = free_port(), []
    with (
        metered(FilesMeter, "127.0.0.1", port) as meter,
        Outbox(tmp_path / "out", ZERO_FILLED, "") as outbox,
    ):
        sources, troubles = find_inputs([tmp_path / "in"], tmp_path / "out")
        run_batch(
            sources,
            troubles,
            outbox,
            Inline,  # type: ignore[arg-type]
            stop=Event(),
            progress=lambda done, total: seen.append(scrape(port)["mri_qpan_files_waiting"]),
            meter=meter,
        )
        found = scrape(port)
    assert seen == [4, 3, 2, 1, 0]
    assert (found["mri_qpan_files_total"], found["mri_qpan_errors_total"]) == (3, 1)
    assert found["mri_qpan_file_seconds_count"] == 3


def test_nowhere_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def listen(*given: object, **named: object) -> None:
        raise AssertionError("nobody asked for metrics")

    monkeypatch.setattr("prometheus_client.start_http_server", listen)
    with metered(ServerMeter, "127.0.0.1", None) as meter:
        assert type(meter) is Meter
        meter.session(1)
        meter.waiting(1)
        meter.done(1.0)
        meter.failed()


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{port}"),
            metered(ServerMeter, "127.0.0.1", port),
        ):
            pass
