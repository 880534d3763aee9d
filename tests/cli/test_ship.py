"""`lorc-eventlog ship`, as people run it: a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from harness import environment, eventually, make_event
from lorc_eventlog import EventWriter
from lorc_eventlog.cli import ship as ship_module
from lorc_eventlog.shipping.metrics import text_of
from lorc_eventlog.shipping.service import Progress, Settings
from lorc_eventlog.spool.directory import Directory
from scripted_bigquery import ScriptedBigQuery, status

EXAMPLES = Path(__file__).parent.parent.parent / "examples"

pytestmark = pytest.mark.process


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@contextmanager
def running(path: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "lorc_eventlog", "ship", path, "--interval", "0.05", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, said = process.communicate(timeout=60)
    assert out == ""
    assert "Traceback" not in said
    return process.returncode, said


def write(path: Path, numbers: range) -> EventWriter:
    writer = EventWriter(spool_dir=path, spool_only=True)
    for number in numbers:
        writer.submit(make_event(number))
    return writer


def numbers_in(server: ScriptedBigQuery) -> list[int]:
    return sorted(event["payload"]["number"] for event in server.events())


def test_until_empty_delivers_everything_and_ends(scripted: ScriptedBigQuery, path: Path) -> None:
    write(path, range(300)).close()
    with running(path, "--until-empty") as process:
        code, said = finish(process)
    assert code == 0, said
    assert "300 events delivered, 0 rejected, 0 on their way" in said
    assert numbers_in(scripted) == [*range(300)]
    assert list(path.glob("*.ship")) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order(
    scripted: ScriptedBigQuery, path: Path, number: signal.Signals
) -> None:
    writer = write(path, range(50))
    with running(path) as process:
        eventually(lambda: len(scripted.events()) == 50, 30)
        process.send_signal(number)
        code, said = finish(process)
    assert code == 0, said
    writer.close()


def test_in_an_outage_a_signal_ends_it_within_its_time_and_the_disk_keeps_all(
    scripted: ScriptedBigQuery, path: Path
) -> None:
    scripted.always(status(503))
    write(path, range(50)).close()
    with running(path, "--term-timeout", "0.5") as process:
        eventually(lambda: scripted.requests, 30)
        process.terminate()
        code, said = finish(process)
    assert code == 0
    assert "BigQuery is not accepting events" in said
    assert "are sent again next time" in said
    scripted.healthy()
    assert len(list(path.glob("*.ship"))) == 1


def test_on_term_drain_goes_on_until_no_process_writes_any_more(
    scripted: ScriptedBigQuery, path: Path
) -> None:
    writer = write(path, range(10))
    with running(path, "--on-term", "drain") as process:
        eventually(lambda: len(scripted.events()) == 10, 30)
        process.terminate()
        time.sleep(0.3)  # it must not end now; there is nothing to wait for
        assert process.poll() is None
        for number in range(10, 20):
            writer.submit(make_event(number))
        writer.close()
        code, said = finish(process)
    assert code == 0, said
    assert numbers_in(scripted) == [*range(20)]


def test_a_second_shipper_ends_with_one_and_says_who_has_the_directory(
    scripted: ScriptedBigQuery, path: Path
) -> None:
    writer = write(path, range(1))
    with running(path) as first:
        eventually(scripted.events, 30)
        with running(path) as second:
            code, said = finish(second)
        assert code == 1
        assert f"process {first.pid} ships from" in said
    writer.close()


def test_what_is_wrong_is_a_line_and_exit_code_one(
    scripted: ScriptedBigQuery, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.mkdir()
    path.chmod(0o777)
    with running(path) as process:
        code, said = finish(process)
    assert (code, "chmod o-w" in said) == (1, True)
    path.chmod(0o700)
    port = scripted.url.rpartition(":")[2]
    with running(path, "--metrics-port", port) as process:
        code, said = finish(process)
    assert (code, "choose another --metrics-port" in said) == (1, True)
    with running(path, "--exactly-once") as process:
        code, said = finish(process)
    assert (code, "needs --transport grpc" in said) == (2, True)
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events$20261124")
    with running(path, "--transport", "grpc", "--exactly-once") as process:
        code, said = finish(process)
    assert (code, "leave out --exactly-once" in said) == (1, True)
    monkeypatch.delenv("EVENTS_BQ_TABLE")
    with running(path) as process:
        code, said = finish(process)
    assert (code, "EVENTS_BQ_TABLE not set" in said) == (1, True)
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events")
    monkeypatch.setenv("EVENTS_BQ_SINK", "off")
    with running(path) as process:
        code, said = finish(process)
    assert (code, "EVENTS_BQ_SINK" in said) == (1, True)


def test_it_serves_metrics_while_it_runs(scripted: ScriptedBigQuery, path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    writer = write(path, range(5))
    with running(path, "--metrics-port", port) as process:
        eventually(lambda: len(scripted.events()) == 5, 30)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            assert b"lorc_eventlog_ship_rejected_total 0" in answer.read()
        process.terminate()
        assert finish(process)[0] == 0
    writer.close()


def test_it_says_now_and_then_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ship_module, "STATUS_SECONDS", 0.0)
    far = Progress(1234, 2, 3, 4, 5, time.time() - 60, None, None, is_settled=False, is_empty=False)

    class Shipper:
        steps = [far, replace(far, oldest=None, is_empty=True)]  # noqa: RUF012
        is_lost = False

        def progress(self) -> Progress:
            return self.steps.pop(0)

        def start(self) -> None: ...

    shipping = ship_module._Shipping.__new__(ship_module._Shipping)
    shipping._shipper = cast("Any", Shipper())
    with caplog.at_level("INFO", "lorc_eventlog"):
        shipping.follow(ship_module._Signals(), until_empty=True)
    assert "1,234 events delivered, 2 rejected, 4 on their way, 5 bytes unread" in caplog.text
    assert "the oldest event is 60 s old" in caplog.text


def test_a_directory_that_is_replaced_is_left_for_the_one_that_is_there_now(
    scripted: ScriptedBigQuery, path: Path, tmp_path: Path
) -> None:
    before = write(path, range(5))
    with running(path) as process:
        eventually(lambda: len(scripted.events()) == 5, 30)
        path.rename(tmp_path / "moved")
        path.touch()  # nothing can be shipped from it
        assert process.stderr is not None
        said = ""
        while "it cannot be shipped yet, which is tried again" not in said:
            said += process.stderr.readline()
        assert f"{path} was deleted or replaced" in said
        path.unlink()
        write(path, range(5, 10)).close()
        eventually(lambda: len(scripted.events()) == 10, 30)
        process.terminate()
        assert finish(process)[0] == 0
    before.close()


def test_a_directory_that_cannot_be_shipped_yet_is_reported_once_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ship_module, "TICK", 0.0)
    far = Progress(1, 0, 0, 4, 5, None, None, None, is_settled=False, is_empty=False)

    class Shipper:
        is_lost = True
        steps = [far, *[replace(far, is_settled=True)] * 4]  # noqa: RUF012

        def progress(self) -> Progress:
            return self.steps.pop(0)

        def stop_reading(self) -> None: ...
        def close(self) -> None: ...
        def start(self) -> None: ...

    tries: list[Settings] = []

    def make(settings: Settings) -> Any:
        tries.append(settings)
        if len(tries) < 4:
            raise OSError(5, "Input/output error")
        made = Shipper()
        made.is_lost = False
        return made

    shipping = ship_module._Shipping.__new__(ship_module._Shipping)
    shipping._settings = Settings(directory=tmp_path, table="dataset.events")
    shipping._shipper = cast("Any", Shipper())
    monkeypatch.setattr("lorc_eventlog.shipping.service.Shipper", make)
    with caplog.at_level("INFO", "lorc_eventlog"):
        shipping._replace(ship_module._Signals())
    assert len(tries) == 4
    assert not shipping._shipper.is_lost
    assert caplog.text.count("cannot be shipped yet, which is tried again") == 1
    assert f"shipping from {tmp_path} to dataset.events (rest)" in caplog.text


def test_a_signal_ends_it_while_it_waits_for_a_directory(
    scripted: ScriptedBigQuery, path: Path
) -> None:
    write(path, range(5)).close()
    with running(path) as process:
        eventually(lambda: len(scripted.events()) == 5, 30)
        shutil.rmtree(path)
        path.touch()
        assert process.stderr is not None
        while "cannot be shipped yet" not in process.stderr.readline():
            assert process.poll() is None
        process.terminate()
        assert finish(process)[0] == 0


# The files in examples/


METRICS = {
    family.name
    for family in text_string_to_metric_families(
        text_of(Progress(1, 2, 3, 4, 5, 6.0, 7.0, None, is_settled=False, is_empty=False), 8.0)
    )
}


def test_every_metric_that_an_alert_names_exists() -> None:
    rules = yaml.safe_load((EXAMPLES / "ship_alerts.yaml").read_text())
    named = {
        name.removesuffix("_total")
        for group in rules["groups"]
        for rule in group["rules"]
        for name in re.findall(r"\blorc_eventlog_\w+", rule["expr"])
    }
    assert named
    assert named <= METRICS


def test_the_manifests_run_the_command_with_options_that_exist() -> None:
    from lorc_eventlog.cli.ship import ship

    known = {option for parameter in ship.params for option in parameter.opts}
    pod = yaml.safe_load((EXAMPLES / "ship_kubernetes.yaml").read_text())
    compose = yaml.safe_load((EXAMPLES / "ship_compose.yaml").read_text())
    unit = (EXAMPLES / "ship.service").read_text()
    (sidecar,) = [c for c in pod["spec"]["initContainers"] if c["name"] == "ship"]
    (started,) = re.findall(r"^ExecStart=/usr/bin/env (.*)$", unit, re.MULTILINE)
    commands = [sidecar["command"], compose["services"]["ship"]["command"], started.split()]
    for program, command, directory, *options in commands:
        assert (program, command, directory[0]) == ("lorc-eventlog", "ship", "/")
        assert {option.partition("=")[0] for option in options if option[0] == "-"} <= known
    assert sidecar["restartPolicy"] == "Always"


def test_the_directories_that_the_manifests_make_are_those_that_are_shipped(tmp_path: Path) -> None:
    pod = yaml.safe_load((EXAMPLES / "ship_kubernetes.yaml").read_text())
    compose = yaml.safe_load((EXAMPLES / "ship_compose.yaml").read_text())
    made, sidecar = pod["spec"]["initContainers"]
    service = compose["services"]["make-spool-directory"]
    user = f"{os.geteuid()}", f"{os.getegid()}"
    for maker, ship in (
        (made["command"], sidecar["command"]),
        (service["command"], compose["services"]["ship"]["command"]),
    ):
        assert maker[-1] == ship[2]
        directory = tmp_path / maker[0] / "events"
        directory.parent.mkdir(mode=0o777)
        owner = [
            user[maker[i - 1] == "-g"] if word == "10001" else word for i, word in enumerate(maker)
        ]
        subprocess.run([*owner[:-1], directory], check=True)
        Directory(directory, access=None, create=False).close()
    for name in ("my-app", "ship"):
        assert "make-spool-directory" in compose["services"][name]["depends_on"]
        assert compose["services"][name]["user"] == "10001:10001"


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd is not here")
    unit = tmp_path / "lorc-eventlog-ship.service"
    unit.write_text((EXAMPLES / "ship.service").read_text())
    ran = subprocess.run([program, "verify", unit], capture_output=True, text=True, check=False)
    assert "Unknown" not in ran.stderr
    assert "Invalid" not in ran.stderr
