"""The alerts: tested by promtool, and within what a server can ever produce."""

import re
import subprocess
from typing import Any

import pytest
import yaml

from support.manifests import FOLDER, OVERLAYS, config, limits, render, server, start_s
from support.tools import tool
from tiercel.engine.process import HEARTBEAT_S
from tiercel.settings import Settings

ROOT = FOLDER.parents[1]
PROMETHEUS = ROOT / "deploy" / "prometheus"
DEFAULTS = Settings.model_fields
UNITS_S = {"s": 1, "m": 60, "h": 3600}


def _yaml(name: str) -> Any:
    return yaml.safe_load((PROMETHEUS / name).read_text())


RULES = {rule["alert"]: rule for group in _yaml("rules.yml")["groups"] for rule in group["rules"]}


def seconds(duration: str) -> int:
    return int(duration[:-1]) * UNITS_S[duration[-1]]


def windows_s(alert: str) -> set[int]:
    return {seconds(each) for each in re.findall(r"\[(\d+[smh])\]", RULES[alert]["expr"])}


def threshold(alert: str) -> float:
    """What the expression is compared with at its end."""
    found = re.search(r"> ([\d.]+)\s*$", RULES[alert]["expr"])
    assert found is not None
    return float(found[1])


def test_promtool_is_content() -> None:
    for arguments in (
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "rules.yml"],
        ["test", "rules", "rules_test.yml"],
    ):
        command = [tool("promtool"), *arguments]
        run = subprocess.run(command, cwd=PROMETHEUS, capture_output=True, text=True, timeout=60)
        assert run.returncode == 0, run.stdout + run.stderr


def test_every_alert_is_tested_firing_and_silent() -> None:
    tests = [(test, case) for test in _yaml("rules_test.yml")["tests"]
             for case in test["alert_rule_test"]]  # fmt: skip
    fired = {case["alertname"] for _, case in tests if case.get("exp_alerts")}
    assert fired == set(RULES)
    # Nothing fires for what is named `good`; promtool wants exactly what is listed.
    text = (PROMETHEUS / "rules_test.yml").read_text()
    assert 'instance="good"' in text and "instance: good" not in text


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_start_pages_nobody_as_long_as_it_may_take(overlay: str) -> None:
    budget_s = start_s(server(render(overlay)))
    patience_s = seconds(RULES["TiercelNotStarted"]["for"])
    assert patience_s >= budget_s + 300
    assert min(windows_s("TiercelDown")) > patience_s  # until the other one takes over
    assert min(windows_s("TiercelNobodyServes")) > patience_s


def test_a_late_heartbeat_is_one_that_a_server_can_have() -> None:
    rule = RULES["TiercelHeartbeatLate"]
    given_up_s = DEFAULTS["heartbeat_timeout"].default
    # Lateness lasts for seconds: between two scrapes, and never for long enough for a `for`.
    assert "for" not in rule and "max_over_time" in rule["expr"]
    assert 2 * HEARTBEAT_S < threshold("TiercelHeartbeatLate") < given_up_s
    assert all(age_s <= given_up_s for age_s in _values("tiercel_engine_heartbeat_age_seconds"))


def test_a_stuck_step_is_one_that_a_server_can_have() -> None:
    given_up_s = DEFAULTS["step_timeout"].default
    assert threshold("TiercelStepStuck") < given_up_s
    assert all(step_s <= given_up_s for step_s in _values("tiercel_engine_step_running_seconds"))


@pytest.mark.parametrize("overlay", [*OVERLAYS, "docker-compose.yml"])
def test_a_full_queue_is_seen_before_refusing_begins(overlay: str) -> None:
    if overlay.endswith(".yml"):
        services = yaml.safe_load((ROOT / overlay).read_text())["services"]
        variables = services["tiercel"]["environment"]
    else:
        variables = config(render(overlay))
    rows, requests = limits(variables)
    assert threshold("TiercelQueueFull") == int(0.8 * (requests - rows)) > 0


def _values(name: str) -> list[float]:
    """All samples of a series in promtool's tests: `1x2 7` is 1 three times, then 7."""
    series = [each for test in _yaml("rules_test.yml")["tests"] for each in test["input_series"]]
    found = [float(sample.partition("x")[0]) for each in series
             if each["series"].startswith(name) for sample in each["values"].split()]  # fmt: skip
    assert found
    return found
