"""Hides what Google's client imports only because the emulator and other tests are installed.

The import then takes half the time, and every program of the tests pays for one. The tests
themselves, and programs that set ``IMPORT_EVERYTHING``, find these modules.
"""

import os
import sys

if "IMPORT_EVERYTHING" not in os.environ:
    for name in ("google.cloud.bigquery_storage", "google.cloud.bigquery_storage_v1", "pandas"):
        sys.modules[name] = None  # type: ignore[assignment]
