"""uWSGI, which forks in C and ends its workers by exit() in C."""

from __future__ import annotations

import datetime as dt
import ipaddress
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import PROGRAMS, environment, eventually, numbers_in
from scripted_bigquery import ScriptedBigQuery
from servers import keep_reading

pytest.importorskip("pyuwsgi", reason="pyuwsgi has no wheel for this Python")

HOOKS = "--py-call-uwsgi-fork-hooks"
GRACEFUL = ("--hook-master-start", "unix_signal:15 gracefully_kill_them_all")


class UWSGI:
    """uWSGI with a master and two workers, and what it says."""

    def __init__(self, process: subprocess.Popen[str], address: str, said: list[str]) -> None:
        self.process = process
        self.address = address
        self.said = said

    def ask(self, number: int) -> None:
        """Let a worker log an event."""
        with urllib.request.urlopen(f"{self.address}/{number}", timeout=60) as answer:
            assert answer.read() == b"ok"

    def ask_in_threads(self, count: int) -> None:
        """Let the workers log 1 to ``count``."""
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self.ask, range(1, count + 1)))

    def terminate(self) -> str:
        """Send SIGTERM, as a deployment does; what it said until it ended."""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(60)
        return "".join(self.said)


@contextmanager
def uwsgi(*options: str, **changes: str) -> Iterator[UWSGI]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-c", "import pyuwsgi; pyuwsgi.run()", "--need-app"]
    command += ["--http-socket", f"127.0.0.1:{port}", "--master", "--processes", "2"]
    command += ["--wsgi-file", "wsgi_app.py", "--callable", "app", "--disable-logging"]
    with (
        subprocess.Popen(
            [*command, *options],
            cwd=PROGRAMS,
            env=environment(IMPORT_EVERYTHING="1", **changes),  # all is torn down at exit
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process,
        ThreadPoolExecutor() as reader,
    ):
        said: list[str] = []
        assert process.stdout is not None
        reader.submit(keep_reading, process.stdout, said)
        server = UWSGI(process, f"http://127.0.0.1:{port}", said)
        try:
            eventually(lambda: can_connect(port), 30)
            server.ask(999_999)
            yield server
        finally:
            process.kill()
            subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)


def can_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


WAYS = {
    "forks in C": (),
    "with fork hooks": (HOOKS,),
    "two threads": ("--threads", "2"),
    "two threads with fork hooks": ("--threads", "2", HOOKS),
    "lazy apps": ("--lazy-apps",),
}


@pytest.mark.parametrize("at_import", [False, True], ids=["quiet import", "an event at import"])
@pytest.mark.parametrize("way", WAYS)
def test_uwsgi_is_exact(scripted: ScriptedBigQuery, way: str, at_import: bool) -> None:
    changes = {} if at_import else {"QUIET_IMPORT": "1"}
    with uwsgi(*GRACEFUL, *WAYS[way], **changes) as server:
        if way == "lazy apps":  # uWSGI itself forgets a signal that comes while a worker loads one
            eventually(lambda: "".join(server.said).count("WSGI app 0") == 2, 30)
        server.ask_in_threads(100)
        said = server.terminate()

    assert "lorc_eventlog" not in said
    assert "not accepting" not in said
    imports = [0] * at_import * (2 if way == "lazy apps" else 1)
    assert numbers_in(scripted) == [*imports, *range(1, 101), 999_999]


def test_workers_that_are_busy_when_they_are_told_to_end_deliver(
    scripted: ScriptedBigQuery,
) -> None:
    """Without GRACEFUL, uWSGI ends a busy worker without Python's exit functions."""
    with uwsgi(*GRACEFUL, HOOKS, QUIET_IMPORT="1") as server:
        answers = [urllib.request.urlopen(f"{server.address}/{n}?0.5", timeout=60) for n in (1, 2)]
        for answer in answers:
            assert answer.read(1) == b"o"  # the worker is in the middle of it
        server.process.terminate()
        for answer in answers:
            assert answer.read() == b"k"
            answer.close()
        said = server.terminate()

    assert "lorc_eventlog" not in said
    assert numbers_in(scripted) == [1, 2, 999_999]


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of 127.0.0.1 and its key, in one file."""
    pytest.importorskip("cryptography")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


def test_what_is_buffered_when_a_worker_ends_goes_over_tls(
    scripted: ScriptedBigQuery, certificate: Path
) -> None:
    """exit() tears OpenSSL down before our flush if it was loaded after the application."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = scripted._listener
    assert listener is not None
    listener.socket = context.wrap_socket(listener.socket, server_side=True)
    changes = {
        "BIGQUERY_EMULATOR_HOST": scripted.url.replace("http:", "https:"),
        "REQUESTS_CA_BUNDLE": str(certificate),
    }
    with uwsgi(*GRACEFUL, HOOKS, QUIET_IMPORT="1", **changes) as server:
        scripted.wait_for_rows(1)  # with TLS in use, in one of the workers
        server.ask_in_threads(20)
        said = server.terminate()

    assert "lorc_eventlog" not in said
    assert numbers_in(scripted) == [*range(1, 21), 999_999]
