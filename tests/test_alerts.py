"""The rules for Prometheus that the documentation offers: what they ask for is there."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from notifier import telemetry

DOCS = Path(__file__).parents[1] / "docs"
INSTALLATION = {
    "notifier_database_up",
    "notifier_mailings",
    "notifier_messages",
    "notifier_oldest_due_seconds",
    "notifier_gateway_state",
    "notifier_held",
    "notifier_build_info",
}


def test_every_rule_asks_for_metrics_that_are_there() -> None:
    """And every figure of the whole installation has a rule, put together with max: each replica shows the same."""
    [group] = yaml.safe_load((DOCS / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    asked = {rule["alert"]: set(re.findall(r"notifier_\w+", rule["expr"])) for rule in group["rules"]}
    there = set()
    for family in telemetry.REGISTRY.collect():
        there |= {family.name, f"{family.name}_total"} if family.type == "counter" else {family.name}
    assert {alert: names - there for alert, names in asked.items() if names - there} == {}
    assert set().union(*asked.values()) >= INSTALLATION
    for rule in group["rules"]:
        for name in asked[rule["alert"]] & (INSTALLATION - {"notifier_build_info"}):
            assert re.search(rf"max( by \([\w, ]+\) )?\({name}", rule["expr"]), rule
        assert rule["for"]
        assert rule["annotations"]["summary"]


def test_the_page_for_operators_names_every_metric_of_the_installation() -> None:
    page = (DOCS / "operations.md").read_text(encoding="utf-8")
    assert {name for name in INSTALLATION if f"`{name}" not in page} == set()
