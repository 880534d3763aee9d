"""FastAPI: each event carries the correlation id of its request, and a shutdown delivers the rest.

Run it:

    export EVENTS_BQ_DATASET=my-project.my_dataset EVENTS_BQ_TABLE=events
    cd examples
    gunicorn --preload --workers 2 --worker-class uvicorn_worker.UvicornWorker fastapi_app:app

or by `uvicorn fastapi_app:app`, and place an order:

    curl -X POST -H 'X-Request-ID: 0d7c5b6e-2f6e-4a0c-8f5a-4d3b2c1a0f9e' localhost:8000/orders/17
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from asgi_correlation_id import CorrelationIdFilter, CorrelationIdMiddleware
from fastapi import FastAPI

from lorc_eventlog import BigQueryEventHandler

events = BigQueryEventHandler(source="shop")
events.addFilter(CorrelationIdFilter())
logging.basicConfig(level=logging.INFO)
logging.getLogger().addHandler(events)
logger = logging.getLogger("shop")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Deliver at the end, because uvicorn ends by SIGTERM, without Python's exit functions."""
    yield
    await events.aflush()


app = FastAPI(lifespan=lifespan)
app.add_middleware(CorrelationIdMiddleware)


@app.post("/orders/{number}")
async def place_order(number: int) -> None:
    """Log one event; nothing here knows of correlation ids or BigQuery."""
    logger.info("placed", extra={"event_type": "order.placed", "payload": {"number": number}})
