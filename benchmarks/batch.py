# SPDX-License-Identifier: Apache-2.0
"""Benchmark a batch of videos, made in several ways, by what each needs beyond the rendering.

    python benchmarks/batch.py --items 1000 --in-flight 1000 --rendering 20 \
        --who ours bare threads floor [--report docs/benchmarks.md]

- ours: this package's batch, with an empty ledger.
- grouped: the same, with a hundred videos in one task run.
- known: the same, after a hundred videos of the kind, from which it learned when to poll.
- threads: the usual way today, a task with the official SDK (`pip install runwayml`), mapped over
  as many threads as videos are in flight.
- bare: asyncio and httpx without Prefect.
- floor: a Prefect flow with as many tasks that do nothing.

The contestants run one after the other, each with a process and a service of its own. All of one
size share a Prefect server, which runs at the lowest priority, as if it were on another machine.
The capacity of the service is measured first, to prove that it is not the limit. Several sizes
after ``--items`` also compare the cost of an item. Of several ``--rounds``, the one with the median
time is shown.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import load
from contestants import CONTESTANTS, GROUP
from measuring import Conditions, Figures, Server, prefect, race
from service import draw_clip, lean_process

from tests.chaos.harness import markdown

ROOT = Path(__file__).parents[1]
MEGABYTE = 1e6
TIMES = "\N{MULTIPLICATION SIGN}"
PACKAGES = ("prefect", "httpx", "runwayml", "av")

BASE = "threads"
"""Contestants that the ratios compare with."""

Race = Mapping[str, Figures | str]
"""Figures of each contestant, or the reason why there are none."""


@dataclass(frozen=True)
class Row:
    """Line of the table.

    Attributes:
        name: Label of the line.
        figure: Function that returns the number.
        form: Format of the number.
        compared: Whether the ratio to the base is shown.
    """

    name: str
    figure: Callable[[Figures, int], float]
    form: str = "{:.1f}"
    compared: bool = True


ROWS = (
    Row("seconds", lambda f, _: f.report.seconds),
    Row("seconds on top of the rendering", lambda f, _: f.on_top),
    Row("seconds until the process ended", lambda f, _: f.ended),
    Row("CPU seconds", lambda f, _: f.cpu),
    Row("CPU milliseconds per item", lambda f, items: 1000 * f.cpu / items),
    Row("peak memory, MB", lambda f, _: f.report.peak / MEGABYTE, "{:.0f}"),
    Row("- before the first item, MB", lambda f, _: f.report.memory_before / MEGABYTE, "{:.0f}"),
    Row("polls per item", lambda f, items: f.service.polls / items, "{:.2f}"),
    Row("mean detection lag, s", lambda f, _: f.service.lag_mean, "{:.2f}"),
    Row("p95 detection lag, s", lambda f, _: f.service.lag_p95, "{:.2f}"),
    Row("seconds to submit all", lambda f, _: f.service.submitting, compared=False),
    Row("Prefect events per item", lambda f, items: f.database.events / items, "{:.2f}"),
    Row("Prefect task runs per item", lambda f, items: f.database.task_runs / items, "{:.2f}"),
    Row("Prefect log lines per item", lambda f, items: f.database.logs / items, "{:.2f}"),
    Row("Prefect database bytes per item", lambda f, items: f.database.size / items, "{:,.0f}"),
    Row("jobs accepted", lambda f, _: f.service.accepted, "{:.0f}", compared=False),
    Row("complete files in place", lambda f, _: f.complete, "{:.0f}", compared=False),
    Row("service busy, % of a core", lambda f, _: 100 * f.service.cpu / f.ended, compared=False),
    Row("- late at most, ms", lambda f, _: 1000 * f.service.late, "{:.0f}", compared=False),
)


@dataclass(frozen=True)
class Goal:
    """Goal of the benchmark: its name, the figure reached, and whether that suffices."""

    name: str
    reached: str
    met: bool

    def __str__(self) -> str:
        return f"- {self.name}: {self.reached}, {'met' if self.met else '**missed**'}"


def goals(races: Mapping[int, Race]) -> Iterator[Goal]:
    """Return the goals that this run can decide."""
    ours: dict[int, Figures] = {}
    for items, race_ in races.items():
        sound = {who: f for who, f in race_.items() if isinstance(f, Figures)}
        if "ours" in sound:
            ours[items] = sound["ours"]
            yield from _goals_at(items, sound)
    if len(ours) > 1:
        few, many = min(ours), max(ours)
        ratio = (ours[many].cpu / many) / (ours[few].cpu / few)
        yield _at_most(f"CPU per item, {many:,} against {few:,} items", ratio, 1.2, TIMES)


def _goals_at(items: int, sound: Mapping[str, Figures]) -> Iterator[Goal]:
    ours = sound["ours"]
    best = sound.get("grouped", ours)
    if base := sound.get(BASE):
        which = f"{items:,} items, against threads"
        yield _at_most(f"{which}: CPU", ours.cpu / base.cpu, 0.75, TIMES)
        yield _at_most(f"{which}: time on top", best.on_top / base.on_top, 0.5, TIMES)
        if known := sound.get("known"):
            which += ", with a ledger that knows"
            polls = known.service.polls / base.service.polls
            yield _at_most(f"{which}: polls", polls, 0.5, TIMES)
    if bare := sound.get("bare"):
        which = f"{items:,} items, against bare"
        yield _at_most(f"{which}: CPU, a task run for each", ours.cpu / bare.cpu, 1.4, TIMES)
        if grouped := sound.get("grouped"):
            cpu = grouped.cpu / bare.cpu
            yield _at_most(f"{which}: CPU, a task run for {GROUP}", cpu, 1.2, TIMES)
        yield _at_most(f"{which}: polls", ours.service.polls / bare.service.polls, 0.65, TIMES)
        lag = ours.service.lag_mean / bare.service.lag_mean
        yield _at_most(f"{which}: mean detection lag", lag, 1.0, TIMES)
    each = 1000 * ours.cpu / items
    if items > 1000:
        yield _at_most(f"{items:,} items: CPU of one", each, 20, " ms")
    peak = ours.report.peak / MEGABYTE
    yield _at_most(f"{items:,} items: peak memory", peak, 200 if items <= 1000 else 280, " MB")
    exact = ours.service.accepted == ours.complete == ours.service.downloads == items
    what = f"{items:,} items: bought, downloaded and stored once each"
    yield Goal(what, "yes" if exact else "no", exact)


def _at_most(what: str, reached: float, limit: float, unit: str) -> Goal:
    return Goal(f"{what} at most {limit:g}{unit}", f"{reached:.2f}{unit}", reached <= limit)


def shown(items: int, race_: Race) -> str:
    """Return the table of one size, each figure with its ratio to the base."""
    sound = {who: figures for who, figures in race_.items() if isinstance(figures, Figures)}
    base = sound.get(BASE)

    def cell(row: Row, who: str) -> str:
        figure = row.figure(sound[who], items)
        text = row.form.format(figure)
        under = row.figure(base, items) if base and who != BASE and row.compared else 0
        return f"{text} ({figure / under:.2f}{TIMES})" if under else text

    lines = [
        markdown.table(["", *sound], [[row.name, *(cell(row, w) for w in sound)] for row in ROWS])
    ]
    lines += [f"No figures for {who}: {why}." for who, why in race_.items() if isinstance(why, str)]
    return "\n\n".join(lines)


async def _median(who: str, conditions: Conditions, server: Server, rounds: int) -> Figures | str:
    """Return all figures of the round with the median time."""
    found: list[Figures] = []
    for number in range(rounds):
        figures = await race(who, conditions, server)
        if isinstance(figures, str):
            return figures
        found.append(figures)
        spent = f"{figures.report.seconds:.1f} s, {figures.complete} of {conditions.items} files"
        _log(f"  {conditions.items} items, {who}, round {number + 1}: {spent}")
    return sorted(found, key=lambda figures: figures.report.seconds)[len(found) // 2]


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--items", type=int, nargs="+", default=[1000], metavar="N", help="videos")
    add("--in-flight", type=int, default=1000, metavar="N", help="videos at a time")
    add("--rendering", type=float, default=20.0, metavar="S", help="seconds that a job takes")
    add("--variation", type=float, default=0.0, metavar="V", help="deviation / mean, lognormal")
    add("--seed", type=int, default=1, metavar="N", help="of the rendering times")
    add("--who", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    add("--rounds", type=int, default=1, metavar="N", help="of each; the median counts")
    add("--database", choices=("sqlite", "postgres"), default="sqlite", help="Prefect's")
    add("--report", type=Path, metavar="FILE", help="Markdown page to write the figures to")
    return parser.parse_args()


def _command(options: argparse.Namespace) -> str:
    words = ["python benchmarks/batch.py", "--items", *map(str, options.items)]
    words += [f"--in-flight {options.in_flight}", f"--rendering {options.rendering:g}"]
    words += [f"--variation {options.variation:g}"] if options.variation else []
    words += [f"--seed {options.seed}"] if options.seed != 1 else []
    words += [f"--rounds {options.rounds}"] if options.rounds > 1 else []
    words += ["--database postgres"] if options.database == "postgres" else []
    return " ".join([*words, "--who", *options.who])


async def run(options: argparse.Namespace) -> str:
    """Run all contestants and return the section of the page."""
    races: dict[int, dict[str, Figures | str]] = {}
    with tempfile.TemporaryDirectory(prefix="cometapi-benchmark-") as folder:
        clip = draw_clip(Path(folder) / "clip.mp4")
        with lean_process(clip) as url:
            capacity = load.shown(await load.measure(url, load.CONNECTIONS))
        _log(f"the service takes, over {load.CONNECTIONS} connections\n{capacity}")
        for items in options.items:
            conditions = Conditions(
                items=items,
                in_flight=min(items, options.in_flight),
                rendering=options.rendering,
                variation=options.variation,
                seed=options.seed,
                clip=clip,
            )
            async with prefect(options.database) as server:
                races[items] = {
                    who: await _median(who, conditions, server, options.rounds)
                    for who in options.who
                }
        size = clip.stat().st_size / 1000
    sizes = " and ".join(f"{items:,}" for items in options.items)
    parts = [
        f"## A batch of {sizes} videos",
        _ABOUT.format(command=_command(options), size=size),
        markdown.machine(*PACKAGES),
        f"Capacity of the service, over {load.CONNECTIONS} connections:\n\n```\n{capacity}\n```",
    ]
    for items, race_ in races.items():
        in_flight = min(items, options.in_flight)
        parts += [f"### {items:,} items, {in_flight:,} in flight", shown(items, race_)]
    reached = [str(goal) for goal in goals(races)]
    if reached:
        parts.append("\n".join(["Goals:", "", *reached]))
    return "\n\n".join(parts)


_ABOUT = """`{command}`

Each contestant submits, waits, downloads a clip of {size:.0f} kB, demuxes it to its end, flushes it
to the disk and renames it, in its own process and with its own service, beside a running Prefect
server. The server needs about 40 ms of CPU time for each task run, for every contestant, and has
the lowest priority. This package also draws a poster, writes a sidecar, computes the SHA-256, and
records each change in the ledger, flushed to the disk. The ratio to threads is in brackets. Time
and CPU time are measured after all imports and a first use of Prefect; CPU time until the end of
the process, so that it includes what Prefect still sends. The rendering time is that of a schedule
without any loss. The lag is the time between the end of a job and the first poll that reports
it."""


def main() -> None:
    """Run, print, and write the report."""
    options = arguments()
    page = options.report and options.report.absolute()
    text = asyncio.run(run(options))
    print(f"\n{text}")
    if page:
        markdown.put_section(page, f"batch {' '.join(map(str, options.items))}", text)


if __name__ == "__main__":
    main()
