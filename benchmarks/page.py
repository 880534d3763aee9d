"""docs/background/performance.md: the tables between its markers, and the plot."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from benchmarks import call_cost, cpu_per_event, disk, growth
from benchmarks.events import KILOBYTES
from benchmarks.server import ROOT

PAGE = ROOT / "docs" / "background" / "performance.md"
PLOT = ROOT / "docs" / "background" / "performance.svg"
RESULTS = ROOT / "benchmarks" / "results.json"

_SECTION = re.compile(r"(<!-- (\w+): written by the benchmark -->\n).*?(<!-- end -->)", re.DOTALL)

Results = dict[str, Any]


def write(results: Results) -> None:
    """Write each table anew that was measured; whatever stands outside the markers stays."""
    measured = ("call_cost", "disk", "cpu_per_event", "sustained", "growth", "start")
    tables: dict[str, tuple[Callable[[Results], Iterable[str]], tuple[str, ...]]] = {
        "summary": (_summary, ("call_cost", "cpu_per_event", "sustained")),
        "machine": (_machine, ("machine",)),
        "targets": (_targets, measured),
        "call": (_call, ("call_cost",)),
        "disk": (_disk, ("disk",)),
        "cpu": (_cpu, ("cpu_per_event",)),
        "sustained": (_sustained, ("sustained",)),
        "growth": (_growth, ("growth",)),
        "start": (_start, ("start",)),
    }

    def section(match: re.Match[str]) -> str:
        table, needs = tables[match[2]]
        if not results.keys() >= set(needs):
            return match[0]
        lines = "\n".join(table(results))
        return f"{match[1]}\n{lines}\n\n{match[3]}"

    PAGE.write_text(_SECTION.sub(section, PAGE.read_text()))


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _header(*names: str) -> Iterator[str]:
    yield _row(*names)
    yield _row("---", *["---:"] * (len(names) - 1))


def _with_spread(figures: list[float], digits: int = 1) -> str:
    middle, low, high = figures
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def _summary(results: Results) -> Iterable[str]:
    """Three sentences that need no glossary."""
    call = results["call_cost"]["0.2"]
    ours, nothing = (call[name]["microseconds"][0] for name in ("lorc_eventlog", "null handler"))
    cpu = results["cpu_per_event"]["lorc_eventlog"]["microseconds"][0]
    steady = results["sustained"]["steady"]
    slow = math.ceil(steady["call_microseconds"]["p99.9"] / 10) / 100
    yield (
        f"- A log call that records an event takes {ours:.0f} millionths of a second, where one "
        f"that does nothing takes {nothing:.0f}."
    )
    yield (
        f"- A million events, from the log call to BigQuery, take a processor core {cpu:.0f} "
        "seconds of work."
    )
    yield (
        f"- At {steady['rate']:,} events a second for {steady['seconds']:.0f} seconds, "
        f"{steady['arrived']:,} of {steady['logged']:,} events arrived, and 999 of 1,000 log calls "
        f"took at most {slow:.2f} thousandths of a second."
    )


def _machine(results: Results) -> Iterable[str]:
    machine = results["machine"]
    quick = sorted(results["quick"])
    yield (
        f"Measured on {machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python "
        f"{machine['python']}"
        + (f"; {', '.join(quick)}: a quick run that shows the form." if quick else ".")
        + f" Versions: {', '.join(f'{n} {v}' for n, v in machine['packages'].items())}."
    )


def _targets(results: Results) -> Iterable[str]:
    small = results["call_cost"]["0.2"]
    on_disk = results["disk"]["arms"]
    in_the_call = on_disk[disk.LOGSTASH_IN_THE_CALL]
    cpu = results["cpu_per_event"]
    steady = results["sustained"]["steady"]
    buffered = results["growth"]["call_by_buffered"]["90000"]["empty"][0]
    flat = [figures["first"][0] for figures in results["growth"]["cpu_by_events"].values()]
    imported = results["start"]["import lorc_eventlog"][0]
    call = steady["call_microseconds"]["p99.9"]
    lines = [
        ("call ÷ QueueHandler's", "≤ 0.75", small["QueueHandler"]["ours"][0], 0.75),
        ("call ÷ google-cloud-logging's", "≤ 0.4", small["google-cloud-logging"]["ours"][0], 0.4),
        ("call ÷ OpenTelemetry's", "≤ 0.4", small["OpenTelemetry"]["ours"][0], 0.4),
        ("call with the spool ÷ the one in memory", "≤ 4", on_disk[disk.SPOOL]["memory"][0], 4),
        ("call with the spool ÷ persist-queue's", "≤ 0.5", on_disk[disk.PERSIST]["spool"][0], 0.5),
        (
            "call with the spool ÷ python-logstash-async's, written in the call",
            "≤ 0.5",
            in_the_call["spool"][0],
            0.5,
        ),
        ("CPU ÷ the floor's", "≤ 1.3", cpu["lorc_eventlog"]["floor"][0], 1.3),
        (
            "CPU ÷ google-cloud-logging's",
            "≤ 0.33",
            cpu["google-cloud-logging"]["ours"][0],
            1 / 3,
        ),
        (
            f"events lost at {steady['rate']:,} a second",
            "0",
            steady["logged"] - steady["arrived"],
            0,
        ),
        ("p99.9 of the call at that rate, ms", "< 1", call / 1000, 1),
        ("memory growth at that rate, MB", "< 60", steady["memory_growth_mb"], 60),
        ("call with 90,000 waiting ÷ with none", "≤ 1.3", buffered, 1.3),
        ("CPU for an event, highest ÷ lowest count", "≤ 1.2", max(flat) / min(flat), 1.2),
        ("import, ms over an empty interpreter", "≤ 60", imported, 60),
    ]
    yield from _header("what", "aim", "measured", "reached")
    for what, aim, measured, limit in lines:
        yield _row(what, aim, f"{measured:,.2f}", "yes" if measured <= limit else "**no**")


def _call(results: Results) -> Iterable[str]:
    sizes = [str(kilobytes) for kilobytes in KILOBYTES]
    columns = [f"{size} KB, µs" for size in sizes]
    yield from _header("arm", *columns, "ours ÷ it, 0.2 KB", "2 KB", "20 KB")
    for name in call_cost.ARMS:
        figures = [results["call_cost"][size][name] for size in sizes]
        yield _row(
            name,
            *(_with_spread(figure["microseconds"]) for figure in figures),
            *(f"{figure['ours'][0]:.2f}" for figure in figures),
        )


def _disk(results: Results) -> Iterable[str]:
    yield from _header(
        "arm",
        "call, µs",
        "it ÷ in memory",
        '`"normal"` ÷ it',
        '`"full"` ÷ it',
        f"{disk.BURST} events on disk after, s",
    )
    for name in disk.ARMS:
        figures = results["disk"]["arms"][name]
        seconds = figures["seconds_until_on_disk"]
        yield _row(
            name,
            _with_spread(figures["microseconds"]),
            *(_with_spread(figures[other], 2) for other in ("memory", "spool", "spool_full")),
            "never" if seconds is None else _with_spread(seconds, 3),
        )
    yield ""
    yield f"File system: {results['disk']['file_system']}."


def _cpu(results: Results) -> Iterable[str]:
    yield from _header("arm", "CPU, µs an event", "it ÷ the floor", "ours ÷ it")
    for name in cpu_per_event.ARMS:
        figures = results["cpu_per_event"][name]
        yield _row(
            name,
            _with_spread(figures["microseconds"]),
            _with_spread(figures["floor"], 2),
            _with_spread(figures["ours"], 2),
        )


def _sustained(results: Results) -> Iterable[str]:
    sustained = results["sustained"]
    yield from _header(
        "events/s",
        "seconds",
        "logged",
        "arrived",
        "largest backlog",
        "memory, MB",
        "p50, µs",
        "p99, µs",
        "p99.9, µs",
        "slowest, ms",
        "p99.9 from when it was due, ms",
        "holds",
    )
    control = sustained["control"]
    yield _row(
        f"{control['rate']:,}, null handler",
        f"{control['seconds']:g}",
        *([""] * 4),
        *_percentiles(control),
        "",
    )
    for run in (sustained["steady"], *sustained["tried"]):
        yield _row(
            f"{run['rate']:,}",
            f"{run['seconds']:g}",
            f"{run['logged']:,}",
            f"{run['arrived']:,}",
            f"{run['largest_backlog']:,}",
            f"+{run['memory_growth_mb']:.0f}",
            *_percentiles(run),
            "yes" if run["holds"] else "no",
        )


def _percentiles(run: Results) -> Iterator[str]:
    call = run["call_microseconds"]
    yield from (f"{call[name]:,.0f}" for name in ("p50", "p99", "p99.9"))
    yield f"{call['max'] / 1000:,.1f}"
    yield f"{run['due_microseconds']['p99.9'] / 1000:,.1f}"


def _growth(results: Results) -> Iterable[str]:
    yield from _header("events waiting already", "call, µs", "÷ an empty buffer's")
    for count in growth.BUFFERED:
        figures = results["growth"]["call_by_buffered"][str(count)]
        yield _row(
            f"{count:,}", _with_spread(figures["microseconds"]), _with_spread(figures["empty"], 2)
        )
    yield ""
    yield from _header("events in all", "CPU, µs an event", "÷ the first line's", "processes")
    for name, figures in results["growth"]["cpu_by_events"].items():
        yield _row(
            f"{int(name):,}",
            _with_spread(figures["microseconds"]),
            _with_spread(figures["first"], 2),
            figures["processes"],
        )


def _start(results: Results) -> Iterable[str]:
    yield from _header("program", "ms over an empty interpreter")
    for name, figures in results["start"].items():
        yield _row(name, _with_spread(figures, 0))
