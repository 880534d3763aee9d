"""What the handler and the processor share: the writer behind them and how it is made."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar, Literal, TypedDict, Unpack

from lorc_eventlog.delivery.options import check, check_flag, has_method
from lorc_eventlog.delivery.synchronous import ForegroundWriter
from lorc_eventlog.delivery.waiting import Waits
from lorc_eventlog.delivery.writer import EventWriter

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

    from lorc_eventlog.delivery.options import DeadLetterCallback

_OPTIONS_OF_A_WRITER = EventWriter.__init__.__kwdefaults__ or {}


class WriterKeywords(TypedDict, total=False):
    """The keyword arguments of an ``EventWriter``, which handler and processor hand on to it.

    With it editors complete them, and type checkers refuse ``capcity=1`` and ``overflow="dropp"``.
    """

    batch_rows: int
    flush_interval: float
    capacity: int
    capacity_bytes: int
    overflow: Literal["drop", "block"]
    close_timeout: float
    on_dead_letter: DeadLetterCallback | None
    spool_dir: str | os.PathLike[str] | None
    spool_max_bytes: int
    spool_sync: Literal["normal", "full"]
    spool_only: bool
    spool_mode: Literal["private", "group"]
    deliver_on_sigterm: bool


class Adapter(Waits):
    """Base of everything that turns log calls into events.

    Args:
        bq_client: A ``google.cloud.bigquery.Client``; None makes one on first use.
        source: The ``source`` of events that name none.
        background: True delivers by threads; False sends each event in the call, as ``emit``
            does, for scripts and serverless functions.
        writer: An ``EventWriter`` to share with other adapters, instead of one of its own.
        writer_options: Options of the ``EventWriter`` that is made.

    Raises:
        RuntimeError: ``EVENTS_BQ_DATASET`` or ``EVENTS_BQ_TABLE`` is not set.
        ValueError: An option has an invalid value, or belongs to a writer that is
            given or not there.
        TypeError: There is no such option.
    """

    own_options: ClassVar[tuple[str, ...]] = ("bq_client", "source", "background", "writer")

    def __init__(
        self,
        bq_client: Client | None = None,
        *,
        source: str | None = None,
        background: bool = True,
        writer: EventWriter | ForegroundWriter | None = None,
        **writer_options: Unpack[WriterKeywords],
    ) -> None:
        self._check_options(writer_options)
        check(
            source is None or (source != "" and isinstance(source, str)),
            "source",
            source,
            "a string that is not empty",
        )
        check_flag("background", background)
        check(
            writer is None or has_method(writer, "submit_row"),
            "writer",
            writer,
            "an EventWriter (in a dictConfig: ext://package.writer)",
        )
        self.source = source
        self.writer: EventWriter | ForegroundWriter
        if writer is not None:
            _refuse("a writer is given, so that it decides", bq_client, writer_options)
            self.writer = writer
        elif background:
            self.writer = EventWriter(bq_client, **writer_options)
        else:
            _refuse("background is false, so that there is no buffer", None, writer_options)
            self.writer = ForegroundWriter(bq_client)

    def _check_options(self, writer_options: WriterKeywords) -> None:
        unknown = sorted(writer_options.keys() - _OPTIONS_OF_A_WRITER.keys())
        if unknown:
            options = [*self.own_options, *_OPTIONS_OF_A_WRITER]
            msg = f"no such option: {', '.join(unknown)}; the options are {', '.join(options)}"
            raise TypeError(msg)

    def flush(self, timeout: float | None = None) -> bool:
        """Send what is buffered and wait until it is settled.

        Args:
            timeout: Seconds to wait at most. None waits for at most ``close_timeout``, because
                ``logging.shutdown`` and ``dictConfig`` call it so, and must not hang in an outage.

        Returns:
            Whether everything logged before the call is in BigQuery, or was given up and
            reported.
        """
        return self.writer.flush(self.writer.close_timeout if timeout is None else timeout)

    def close(self) -> None:
        """Flush for at most ``close_timeout`` seconds. What is logged later is still delivered."""
        self.writer.close()


def _refuse(why: str, bq_client: Client | None, writer_options: WriterKeywords) -> None:
    unused = sorted(writer_options) + (["bq_client"] if bq_client is not None else [])
    if unused:
        msg = f"{', '.join(unused)} would have no effect: {why}"
        raise ValueError(msg)
