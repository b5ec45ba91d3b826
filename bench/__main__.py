"""`make bench`: one table, each figure beside its baseline of the same run; ONLY=name for one question.

FULL=1 asks about five million messages where half a million stand for them otherwise.
"""

from __future__ import annotations

import os
import subprocess
import sys

from rich.console import Console
from rich.table import Table

from bench import (
    api,
    api_busy,
    claim,
    latency,
    lists,
    memory,
    peers,
    planning,
    replicas,
    start,
    statistics,
    throughput,
    urgent,
    waiting,
    wal,
)
from bench.nginx import Missing, fast_gateway
from notifier import telemetry

QUESTIONS = {
    "throughput": throughput.rows,
    "latency": latency.rows,
    "replicas": replicas.rows,
    "start": start.rows,
    "urgent": urgent.rows,
    "waiting": waiting.rows,
    "claim": claim.rows,
    "wal": wal.rows,
    "planning": planning.rows,
    "statistics": statistics.rows,
    "lists": lists.rows,
    "api": api.rows,
    "api_busy": api_busy.rows,
    "memory": memory.rows,
    "peers": peers.rows,
}


def main() -> None:
    """Ask the questions, print the table; exit 1 when a target is missed, 2 when nothing could be measured."""
    only = os.environ.get("ONLY")
    if only and only not in QUESTIONS:
        sys.exit(f"ONLY={only} is none of the questions: {', '.join(QUESTIONS)}")
    table = Table("question", "figure", "baseline", "ratio", "target", "met")
    telemetry.configure("warning", "console")
    missed = measured = False
    for name, rows in QUESTIONS.items():
        if only in (None, "", name):
            try:
                with fast_gateway() as url:
                    for question, figure, baseline, ratio, target, met in rows(url):
                        missed, measured = missed or not met, True
                        table.add_row(question, figure, baseline, ratio, target, "yes" if met else "NO")
            except Missing as missing:
                table.add_row(f"{name}: {missing}", "-", "-", "-", "-", "-")
    Console(width=140).print(table)
    print(
        "commit",
        subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False).stdout,
    )
    sys.exit(int(missed) if measured else 2)


if __name__ == "__main__":
    main()
