"""What everything that buffers events offers beside ``flush`` and ``close``: ``with``, asyncio."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Self

from lorc_eventlog.lifecycle.signals import background_thread

if TYPE_CHECKING:
    from concurrent.futures import Future


class Waits:
    """Base of the adapters and of the writers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def aflush(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109  as flush has it
        """Flush from a coroutine of asyncio, while the event loop goes on.

        A coroutine that is cancelled stops waiting; the events are sent all the same.

        Args:
            timeout: Seconds to wait at most; None as for :meth:`flush`.

        Returns:
            Whether all events are in BigQuery, or reported; as for :meth:`flush`.

        Example:
            In the lifespan of a FastAPI application:

                yield
                await handler.aflush(timeout=5)
        """
        import asyncio
        from concurrent.futures import Future

        flushed: Future[bool] = Future()
        flushed.set_running_or_notify_cancel()
        # Not the loop's own executor: its threads may all be busy, and asyncio.run() does not end
        # before they do, so an outage would hang a coroutine that was cancelled.
        try:
            settle = partial(self._settle, flushed, timeout)
            background_thread(settle, "lorc_eventlog-flush").start()
        except RuntimeError:  # the interpreter is shutting down, or out of (daemon) threads
            return self.flush(timeout)
        return await asyncio.wrap_future(flushed)

    def _settle(self, flushed: Future[bool], timeout: float | None) -> None:
        try:
            flushed.set_result(self.flush(timeout))
        except BaseException as error:  # noqa: BLE001  it is the coroutine's
            flushed.set_exception(error)

    def flush(self, timeout: float | None = None) -> bool:
        """Send what is buffered and wait until it is settled."""
        raise NotImplementedError

    def close(self) -> None:
        """Flush for the last time."""
        raise NotImplementedError
