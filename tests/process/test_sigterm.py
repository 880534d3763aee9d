"""``deliver_on_sigterm=True``: SIGTERM is an orderly exit, where the application has no other."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from harness import make_event, numbers_in, running_writer, start_program
from lorc_eventlog.lifecycle import sigterm
from scripted_bigquery import ScriptedBigQuery

NO_EFFECT = "deliver_on_sigterm has no effect, because "


@pytest.fixture
def default_action(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process in which nobody has asked for anything."""
    assert threading.current_thread() is threading.main_thread()
    monkeypatch.setattr(sigterm, "request", sigterm.Request())
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def test_sigterm_delivers_and_ends_with_143(scripted: ScriptedBigQuery) -> None:
    with start_program("sigterm.py", "waits") as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        program.send_signal(signal.SIGTERM)
        _, said = program.communicate()

    assert (program.returncode, said) == (143, "")
    assert numbers_in(scripted) == [0]


def test_a_second_sigterm_kills(scripted: ScriptedBigQuery) -> None:
    with start_program("sigterm.py", "hangs at the exit") as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        program.send_signal(signal.SIGTERM)
        assert program.stdout.readline() == "exits\n"
        program.send_signal(signal.SIGTERM)
        program.communicate()

    assert program.returncode == -signal.SIGTERM
    assert numbers_in(scripted) == []


def test_a_forked_child_asks_for_itself_with_its_first_event(scripted: ScriptedBigQuery) -> None:
    """One that logs nothing dies of the signal, as it would without the package."""
    with start_program("sigterm.py", "children") as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "-15 143\n"
        assert program.stdout.readline() == "ready\n"
        program.send_signal(signal.SIGTERM)
        program.communicate()

    assert program.returncode == 143
    assert numbers_in(scripted) == [0, 1]


@pytest.mark.usefixtures("scripted", "default_action")
def test_the_first_writer_sets_the_handler_and_the_second_leaves_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with running_writer(), running_writer(deliver_on_sigterm=False):
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    for _ in range(2):
        with running_writer(deliver_on_sigterm=True):
            assert signal.getsignal(signal.SIGTERM) is sigterm.end_in_order
    assert caplog.messages == []
    with pytest.raises(SystemExit) as ended:
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.usefixtures("scripted", "default_action")
@pytest.mark.parametrize("action", [signal.SIG_IGN, lambda *_: None])
def test_the_application_s_own_action_stays_and_one_warning_says_so(
    caplog: pytest.LogCaptureFixture, action: signal.Handlers
) -> None:
    signal.signal(signal.SIGTERM, action)
    for _ in range(2):
        with running_writer(deliver_on_sigterm=True):
            assert signal.getsignal(signal.SIGTERM) == action
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(
        f"{NO_EFFECT}SIGTERM has a handler already, or is ignored: on SIGTERM, events in memory "
        "are delivered only if"
    )


@pytest.mark.usefixtures("scripted", "default_action")
def test_another_thread_than_the_main_one_is_warned(caplog: pytest.LogCaptureFixture) -> None:
    def make() -> None:
        with running_writer(deliver_on_sigterm=True):
            pass

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    (message,) = caplog.messages
    assert message.startswith(f"{NO_EFFECT}the writer was not made in the main thread: ")


@pytest.mark.usefixtures("default_action")
def test_where_python_cannot_set_it_a_warning_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subinterpreter has a main thread, too."""

    def cannot(*_: object) -> None:
        raise ValueError("signal only works in main thread of the main interpreter")

    with monkeypatch.context() as patched:
        patched.setattr(signal, "signal", cannot)
        sigterm.request.make()
    assert len(caplog.messages) == 1


@pytest.mark.usefixtures("default_action")
def test_the_child_of_a_fork_starts_from_the_default_action(
    scripted: ScriptedBigQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, without a process."""
    request = sigterm.request
    monkeypatch.setattr(request, "_is_made", True)
    request.restart_in_child()  # the parent could not set it
    request.make()
    request.restart_in_child()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with running_writer() as writer:
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        writer.submit(make_event(0))
        assert writer.flush()
        assert signal.getsignal(signal.SIGTERM) is sigterm.end_in_order
    assert numbers_in(scripted) == [0]
