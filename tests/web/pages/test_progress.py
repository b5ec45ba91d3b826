"""The bar of a mailing."""

from __future__ import annotations

from notifier.models import Status
from notifier.web.pages.progress import Progress


def test_the_bar_adds_up() -> None:
    messages = dict.fromkeys(Status, 0) | {Status.SENT: 1, Status.FAILED: 1, Status.WAITING: 2}
    progress = Progress(4, messages)
    assert [(each.status, each.start, each.length) for each in progress.segments] == [
        (Status.SENT, 0.0, 250.0),
        (Status.FAILED, 250.0, 250.0),
    ]
    assert (progress.open, progress.percent) == (2, 50)
    assert Progress(0, dict.fromkeys(Status, 0)).percent == 0
