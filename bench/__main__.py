"""`make bench`: one table, each figure beside its baseline of the same run; ONLY=name for one question.

FULL=1 asks about five million messages where half a million stand for them otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

from rich.console import Console
from rich.table import Table

from bench import api, claim, lists, memory, planning, start, statistics, throughput, wal
from bench.nginx import Missing, fast_gateway

QUESTIONS = {
    "throughput": throughput.rows,
    "start": start.rows,
    "claim": claim.rows,
    "wal": wal.rows,
    "planning": planning.rows,
    "statistics": statistics.rows,
    "lists": lists.rows,
    "api": api.rows,
    "memory": memory.rows,
}


def main() -> None:
    """Ask the questions, print the table; exit 1 when a target is missed, 2 when nothing could be measured."""
    only = os.environ.get("ONLY")
    if only and only not in QUESTIONS:
        sys.exit(f"ONLY={only}: there is {', '.join(QUESTIONS)}")
    table = Table("question", "figure", "baseline", "ratio", "target", "met")
    missed = False
    try:
        with fast_gateway() as url:
            for name, rows in QUESTIONS.items():
                if only in (None, "", name):
                    for question, figure, baseline, ratio, target, met in rows(url):
                        missed |= not met
                        table.add_row(question, figure, baseline, ratio, target, "yes" if met else "NO")
    except Missing as missing:
        print(missing, file=sys.stderr)
        sys.exit(2)
    Console(width=140).print(table)
    print(
        "commit",
        subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False).stdout,
    )
    sys.exit(int(missed))


if __name__ == "__main__":
    main()
