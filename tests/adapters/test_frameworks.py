"""Frameworks: each example runs as its users run it, and every event is in BigQuery by its SQL."""

from __future__ import annotations

import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from celery_workers import make_broker, running_celery, send_tasks
from clients import Query
from doc_pages import write_files
from harness import environment, eventually
from servers import EXAMPLES, GUNICORN, UVICORN, running, start_server

ORDERS = 20

PRELOAD = (*GUNICORN, "--preload")
UVICORN_WORKER = ("--worker-class", "uvicorn_worker.UvicornWorker")

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("events_table")]


def run_example(name: str, *options: str) -> str:
    """Run an example to its end and give what it prints."""
    completed = subprocess.run(
        [sys.executable, *options, EXAMPLES / name],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout


def place_orders(address: str) -> dict[str, int]:
    """Place orders, each with a correlation id, by a few clients; give them by their ids."""
    orders = {str(uuid.uuid4()): number for number in range(ORDERS)}

    def place(correlation_id: str) -> None:
        answer = requests.post(
            f"{address}/orders/{orders[correlation_id]}",
            headers={"X-Request-ID": correlation_id},
            timeout=30,
        )
        assert answer.status_code == 200, answer.text
        assert answer.headers["X-Request-ID"] == correlation_id

    with ThreadPoolExecutor(4) as clients:
        list(clients.map(place, orders))
    return orders


def orders_in_bigquery(query: Query) -> dict[str, int]:
    rows = query(
        "SELECT correlation_id, CAST(JSON_VALUE(payload, '$.number') AS INT64) AS number "
        "FROM events WHERE event_type = 'order.placed' AND source = 'shop'"
    )
    return {row["correlation_id"]: row["number"] for row in rows}


@pytest.fixture
def at_its_end(tmp_path: Path) -> Callable[..., Path]:
    """Write an example as ``main.py``, so that it sends nothing before its end; give the folder."""

    def write(example: str, *, without: str = "") -> Path:
        text = (EXAMPLES / example).read_text(encoding="utf-8").replace(without, "")
        text, in_call = re.subn(r'source="\w+"', r"\g<0>, flush_interval=3600", text)
        text, in_dict = re.subn(r'"source": "\w+"', r'\g<0>, "flush_interval": 3600', text)
        assert in_call + in_dict == 1
        (tmp_path / "main.py").write_text(text, encoding="utf-8")
        return tmp_path

    return write


# FastAPI


@pytest.mark.parametrize(
    "server",
    [
        pytest.param((*PRELOAD, *UVICORN_WORKER), id="gunicorn with uvicorn workers"),
        pytest.param((*PRELOAD, "--worker-class", "asgi"), id="gunicorn with its own workers"),
        pytest.param(UVICORN, id="uvicorn"),
        pytest.param((*UVICORN, "--workers", "2"), id="uvicorn with workers"),
    ],
)
def test_fastapi_delivers_each_request_s_event_with_its_correlation_id_at_sigterm(
    server: tuple[str, ...], query: Query, at_its_end: Callable[..., Path]
) -> None:
    with running(*server, "main:app", folder=at_its_end("fastapi_app.py")) as program:
        orders = place_orders(start_server(program))
        program.terminate()

    assert orders_in_bigquery(query) == orders


@pytest.mark.parametrize(
    "server",
    [
        pytest.param((*PRELOAD, *UVICORN_WORKER), id="gunicorn with uvicorn workers"),
        pytest.param(UVICORN, id="uvicorn"),
    ],
)
def test_uvicorn_delivers_nothing_at_sigterm_without_the_lifespan_as_the_page_says(
    server: tuple[str, ...], query: Query, at_its_end: Callable[..., Path]
) -> None:
    folder = at_its_end("fastapi_app.py", without="lifespan=lifespan")
    with running(*server, "main:app", folder=folder) as program:
        place_orders(start_server(program))
        program.terminate()

    assert orders_in_bigquery(query) == {}


@pytest.mark.parametrize(
    "server",
    [
        pytest.param((*PRELOAD, *UVICORN_WORKER), id="gunicorn with uvicorn workers"),
        pytest.param(UVICORN, id="uvicorn"),
    ],
)
def test_the_app_of_the_page_delivers_events_with_correlation_ids(
    server: tuple[str, ...], query: Query, tmp_path: Path
) -> None:
    write_files("docs/start/fastapi.md", tmp_path)
    with running(*server, "main:app", folder=tmp_path) as program:
        orders = place_orders(start_server(program))
        program.terminate()

    assert orders_in_bigquery(query) == orders


# Django


@pytest.mark.parametrize("worker_class", ["sync", "gthread"])
def test_django_delivers_the_events_of_its_logging_at_sigterm(
    query: Query, worker_class: str, at_its_end: Callable[..., Path]
) -> None:
    server = (*PRELOAD, "--worker-class", worker_class, "main:application")
    with running(*server, folder=at_its_end("django_app.py")) as program:
        address = start_server(program)
        for name in ("sleep", "pain", "mood"):
            answer = requests.post(
                f"{address}/answers/{name}", headers={"X-Request-ID": f"trace-{name}"}, timeout=30
            )
            assert answer.json() == {"questionnaire": name}
        program.terminate()

    assert query(
        "SELECT event_type, source, correlation_id, payload FROM events ORDER BY created_at"
    ) == [
        {
            "event_type": "questionnaire.answered",
            "source": "questionnaires",
            "correlation_id": f"trace-{name}",
            "payload": {"questionnaire": name},
        }
        for name in ("sleep", "pain", "mood")
    ]


@pytest.mark.parametrize(
    "server",
    [
        pytest.param((*GUNICORN, "shop.wsgi"), id="gunicorn"),
        pytest.param((*UVICORN, "shop.asgi:application"), id="uvicorn"),
    ],
)
def test_the_django_project_of_the_page_delivers_at_sigterm(
    server: tuple[str, ...], query: Query, tmp_path: Path
) -> None:
    start = [sys.executable, "-m", "django", "startproject", "shop", "."]
    subprocess.run(start, cwd=tmp_path, check=True, timeout=60)
    write_files("docs/start/django.md", tmp_path)
    with running(*server, folder=tmp_path) as program:
        requests.post(f"{start_server(program)}/orders/7", timeout=30).raise_for_status()
        program.terminate()

    assert query("SELECT event_type, payload FROM events") == [
        {"event_type": "order.placed", "payload": {"number": 7}}
    ]


# Celery


@pytest.fixture
def celery_folder(at_its_end: Callable[..., Path]) -> Path:
    """A folder with the example and a broker."""
    folder = at_its_end("celery_app.py")
    make_broker(folder)
    return folder


def send_reports(folder: Path) -> list[str]:
    return send_tasks(folder, "send_report", ORDERS)


def reports_in_bigquery(query: Query) -> list[str]:
    # The emulator knows no insertId: what is sent once more at the end is there twice.
    rows = query(
        "SELECT DISTINCT event_id, correlation_id, JSON_VALUE(payload, '$.pages') AS pages "
        "FROM events WHERE event_type = 'report.sent' AND source = 'reports'"
    )
    reports = {int(row["pages"]): row["correlation_id"] for row in rows}
    assert len(rows) == len(reports)
    return [reports[pages] for pages in sorted(reports)]


def test_celery_delivers_the_events_of_its_worker_processes_at_a_warm_shutdown(
    query: Query, celery_folder: Path
) -> None:
    with running_celery(celery_folder, "--concurrency", "2") as worker:
        sent = send_reports(celery_folder)
        worker.wait_for("report sent", ORDERS)
        worker.terminate()

    assert reports_in_bigquery(query) == sent


def test_celery_delivers_the_events_of_worker_processes_that_it_replaces(
    query: Query, celery_folder: Path
) -> None:
    options = ("--concurrency", "1", "--max-tasks-per-child", str(ORDERS // 2))
    with running_celery(celery_folder, *options):
        sent = send_reports(celery_folder)
        eventually(lambda: reports_in_bigquery(query) == sent, timeout=30)


# Scripts


def test_a_job_delivers_its_events_in_the_foreground(query: Query) -> None:
    run_example("serverless.py")
    assert query("SELECT event_type, source, payload FROM events") == [
        {"event_type": "report.sent", "source": "reports_job", "payload": {"pages": 3}}
    ]


def test_a_function_has_delivered_its_events_when_it_answers(query: Query) -> None:
    with running_function() as handle:
        for reports in ([1, 2], [3]):
            assert handle({"reports": reports}, None) == {"delivered": True}
            assert query(
                "SELECT JSON_VALUE(payload, '$.pages') AS pages FROM events "
                "WHERE source = 'reports_function' ORDER BY created_at"
            ) == [{"pages": str(pages)} for pages in range(1, reports[-1] + 1)]


@contextmanager
def running_function() -> Iterator[Callable[[dict[str, list[int]], object], dict[str, bool]]]:
    import serverless

    yield serverless.handle
    for handler in tuple(serverless.logger.handlers):
        serverless.logger.removeHandler(handler)
        handler.close()


def test_a_yaml_file_configures_the_handler_and_its_options(query: Query) -> None:
    run_example("yaml_config.py")
    assert query("SELECT event_type, source, payload FROM events") == [
        {
            "event_type": "email.received",
            "source": "gmail_ingester",
            "payload": {"subject": "My results"},
        }
    ]


def test_the_id_of_the_trace_ties_the_events_of_its_spans_together(query: Query) -> None:
    trace_id = run_example("opentelemetry_trace.py").strip()
    assert re.fullmatch(r"[0-9a-f]{32}", trace_id)
    assert query("SELECT event_type, correlation_id FROM events ORDER BY created_at") == [
        {"event_type": "email.received", "correlation_id": trace_id},
        {"event_type": "email.stored", "correlation_id": trace_id},
    ]


def test_prometheus_reads_what_became_of_the_events(query: Query) -> None:
    metrics = run_example("metrics_prometheus.py")
    assert query("SELECT COUNT(*) AS events FROM events") == [{"events": 3}]
    assert 'events_total{end="delivered"} 3.0' in metrics
    assert 'events_total{end="dropped"} 0.0' in metrics
    assert "events_retries_total 0.0" in metrics
    assert "events_buffered 0.0" in metrics


def test_the_tests_of_a_user_pass_and_send_nothing(
    query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EVENTS_BQ_DATASET")
    said = run_example(
        "test_with_captured_events.py", "-m", "pytest", "-p", "lorc_eventlog.pytest_plugin"
    )
    assert "2 passed" in said
    assert query("SELECT COUNT(*) AS events FROM events") == [{"events": 0}]
