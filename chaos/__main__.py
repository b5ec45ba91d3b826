"""`make chaos`: every row of the fault matrix, then the seeded run; SEED=, MINUTES=, ONLY=, see `--help`.

Prints a line per fault and exits with 1 when a promise was broken.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable

import click
from rich.console import Console
from rich.table import Table

from chaos import clocks, databases, edge, gateways, people, replicas, storm
from chaos.verdict import Figures, Lacking, Row

ROWS: tuple[Row, ...] = (*replicas.ROWS, *databases.ROWS, *gateways.ROWS, *clocks.ROWS, *people.ROWS, *edge.ROWS)
HEADINGS = ("fault", "runs", "messages", "sent", "lost", "doubled", "in doubt", "slowest answer", "seconds", "")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", default=10.0, show_default=True, help="How long the seeded run lasts; 0 leaves it out.")
@click.option("--seed", type=int, help="Replays a seeded run; a new one by default.")
@click.option("--only", default="", help="Numbers of rows (3,5) or 'storm'; everything by default.")
def command(minutes: float, seed: int | None, only: str) -> None:
    """Break everything that can break, and count what was lost and what was doubled."""
    wanted = {part.strip() for part in only.split(",") if part.strip()}
    known = {str(row.number) for row in ROWS} | {"storm"}
    if unknown := wanted - known:
        raise click.UsageError(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    rows = [row for row in sorted(ROWS) if not wanted or str(row.number) in wanted]
    if minutes > 0 and (not wanted or "storm" in wanted):
        rows.append(storm.row(seed, minutes))
    console = Console(stderr=True)
    lines, broken = [], False
    for row in rows:
        console.print(f"… {row.number or ''} {row.fault}".replace("  ", " "), highlight=False)
        line, failed = _line(row)
        lines.append(line)
        broken |= failed
        console.print("  " + " · ".join(part for part in line[1:] if part), highlight=False, markup=False)
    Console(width=None if sys.stdout.isatty() else 180).print(_table(lines))
    sys.exit(1 if broken else 0)


def _line(row: Row) -> tuple[list[str], bool]:
    started = time.monotonic()
    try:
        figures = row.run()
    except Lacking as lacking:
        # Where everything is installed on purpose nothing may be left out.
        return _cells(row, Figures(), started, f"skipped: {lacking}"), "NOTIFIER_REQUIRE_ALL" in os.environ
    except AssertionError as error:
        return _cells(row, Figures(), started, f"BROKEN: {error}"), True
    word = "; ".join(("BROKEN: " + "; ".join(figures.breaches), *figures.notes) if figures.breaches else figures.notes)
    return _cells(row, figures, started, word or "ok"), bool(figures.breaches)


def _cells(row: Row, figures: Figures, started: float, word: str) -> list[str]:
    numbers = (figures.runs, figures.messages, figures.sent, figures.lost, figures.doubled, figures.in_doubt)
    name = f"{row.number} {row.fault}" if row.number else row.fault
    slowest = f"{figures.slowest * 1000:.0f} ms" if figures.slowest else ""
    return [name, *map(str, numbers), slowest, f"{time.monotonic() - started:.0f}", word]


def _table(lines: Iterable[list[str]]) -> Table:
    table = Table(*HEADINGS)
    for line in lines:
        table.add_row(*line)
    return table


if __name__ == "__main__":
    command()
