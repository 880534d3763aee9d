"""Celery workers, whose broker is a folder."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import environment
from servers import Program, running

BY_CONFIG = {"CELERY_LOADER": "default"}  # reads celeryconfig.py


def make_broker(folder: Path) -> None:
    """Make the broker of the application in ``folder``, which is ``main.py``."""
    for name in ("broker", "outbox"):
        (folder / name).mkdir()
    (folder / "celeryconfig.py").write_text(
        'broker_url = "filesystem://"\n'
        'broker_transport_options = {"data_folder_in": "broker", "data_folder_out": "outbox",\n'
        '                            "control_folder": "broker", "polling_interval": 0.05}\n'
    )


@contextmanager
def running_celery(folder: Path, *options: str) -> Iterator[Program]:
    """Run a worker with processes, and wait until it is ready."""
    worker = ("celery", "--app", "main", "worker", "--pool", "prefork", "--without-gossip")
    with running(*worker, "--without-mingle", *options, folder=folder, **BY_CONFIG) as program:
        program.wait_for(r"celery@.* ready")
        yield program


def send_tasks(folder: Path, task: str, count: int) -> list[str]:
    """Send so many tasks, numbered from 0, and give their ids.

    They are moved to the broker when they are whole: its reader takes them as soon as they are
    opened, and may find them empty.
    """
    program = f"import main\nfor n in range({count}): print(main.{task}.delay(n).id)"
    sent = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=environment(**BY_CONFIG),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    for message in sorted((folder / "outbox").glob("*.celery.msg")):
        message.rename(folder / "broker" / message.name)
    return sent.stdout.split()


def shut_down_cold(folder: Path) -> tuple[set[int], str]:
    """End a worker by SIGQUIT while it sends reports: those that it said it sent, and all it said.

    billiard hangs where a thread of a worker process takes its SIGTERM.
    """
    make_broker(folder)
    with running_celery(folder, "--concurrency", "2") as worker:
        send_tasks(folder, "send_report", 100)
        worker.wait_for(r"report \d+ sent", 5)
        worker.process.send_signal(signal.SIGQUIT)
        worker.process.wait(90)
    said = "".join(worker.said)
    sent = {int(pages) for pages in re.findall(r"report (\d+) sent", said)}
    assert len(sent) < 100
    return sent, said
