"""Lets gevent or eventlet patch the standard library, as their users do."""

from __future__ import annotations

import warnings


def patch(library: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # gevent's that it is late, eventlet's that it is deprecated
        if library == "gevent":
            from gevent import monkey

            monkey.patch_all()
        else:
            import eventlet

            eventlet.monkey_patch()
