"""``lorc-eventlog``: is the way to BigQuery open, what arrives, and what waits on disk.

Exit codes: 0 fine, 1 something is wrong, 2 the command line is not understood. Results go to
standard output, everything else to standard error. A payload or a ``subject_id`` is shown only
with ``--show-data``.
"""

from __future__ import annotations

import io
import sys
from typing import Any

import click

from lorc_eventlog.cli.check import check
from lorc_eventlog.cli.create_table import create_table
from lorc_eventlog.cli.emit import emit
from lorc_eventlog.cli.emulator import emulator
from lorc_eventlog.cli.output import Trouble
from lorc_eventlog.cli.query import client_errors, not_understood, what_failed
from lorc_eventlog.cli.ship import ship
from lorc_eventlog.cli.spool import spool
from lorc_eventlog.cli.tail import tail


class Commands(click.Group):
    """Turns what the package and BigQuery's client raise into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that the command line names."""
        try:
            return super().invoke(ctx)
        except RuntimeError as error:
            if type(error) is not RuntimeError:  # click's own ways to end
                raise
            trouble = Trouble(str(error))
        except click.ClickException:  # before Google's client is imported for nothing
            raise
        except client_errors() as error:
            trouble = Trouble(*what_failed(error))
        except OSError:  # of a stream; main() says it
            raise
        except Exception as error:  # noqa: BLE001  a traceback helps nobody at night
            trouble = Trouble(*not_understood(error))
        # Not in the except clauses: the client's error may quote what is nobody's business.
        raise trouble


@click.group(
    cls=Commands,
    commands=[check, create_table, emit, emulator, ship, spool, tail],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="lorc_eventlog")
def commands() -> None:
    """Look after the BigQuery table that lorc_eventlog writes events to.

    The table is the one that EVENTS_BQ_DATASET and EVENTS_BQ_TABLE name; with
    BIGQUERY_EMULATOR_HOST it is one of an emulator. When nothing arrives, start with
    `lorc-eventlog check`.

    Exit codes: 0 fine, 1 something is wrong, 2 the command line is not understood.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal without UTF-8 gets "\u2713" for a check mark, and no traceback.
            stream.reconfigure(errors="backslashreplace")
