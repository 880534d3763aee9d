"""Django: one additional handler in `LOGGING`, in a project of one file.

Run it:

    export EVENTS_BQ_DATASET=my-project.my_dataset EVENTS_BQ_TABLE=events
    cd examples
    gunicorn --preload --workers 2 django_app:application

and send it a request:

    curl -X POST -H 'X-Request-ID: trace-0001' localhost:8000/answers/sleep
"""

import logging

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

LOGGING = {  # as in settings.py
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {
        "console": {"class": "logging.StreamHandler"},
        "events": {"class": "lorc_eventlog.BigQueryEventHandler", "source": "questionnaires"},
    },
    "root": {"level": "INFO", "handlers": ["console", "events"]},
}

settings.configure(ALLOWED_HOSTS=["localhost", "127.0.0.1"], ROOT_URLCONF=__name__, LOGGING=LOGGING)
logger = logging.getLogger("questionnaires")


def answer(request: HttpRequest, questionnaire: str) -> HttpResponse:
    """Log one event of the request's trace."""
    logger.info(
        "answered",
        extra={
            "event_type": "questionnaire.answered",
            "correlation_id": request.headers.get("X-Request-ID"),
            "payload": {"questionnaire": questionnaire},
        },
    )
    return JsonResponse({"questionnaire": questionnaire})


urlpatterns = [path("answers/<slug:questionnaire>", answer)]
application = get_wsgi_application()
