"""What scales and what warns of a queue: whether the limits let the numbers get there."""

import pytest

from support.manifests import OVERLAYS, config, limits, one, render

TOLERANCE = 1.1  # Kubernetes does nothing about less


def thresholds(overlay: str) -> dict[str, float]:
    """What each metric may be per pod before there is one pod more."""
    documents = render(overlay)
    if any(each["kind"] == "HorizontalPodAutoscaler" for each in documents):
        hpa = one(documents, "HorizontalPodAutoscaler")["spec"]["metrics"]
        targets = {each["pods"]["metric"]["name"]: each["pods"]["target"] for each in hpa}
        assert {target["type"] for target in targets.values()} == {"AverageValue"}
        return {name: _quantity(target["averageValue"]) for name, target in targets.items()}
    triggers = one(documents, "ScaledObject")["spec"]["triggers"]
    assert {each["metricType"] for each in triggers} == {"AverageValue"}
    return {
        each["metadata"]["query"].removeprefix("sum(").removesuffix('{job="tiercel"})'):
            float(each["metadata"]["threshold"])
        for each in triggers
    }  # fmt: skip


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_requests_wait_before_any_is_refused(overlay: str) -> None:
    rows, requests = limits(config(render(overlay)))
    assert rows < requests


@pytest.mark.parametrize("overlay", [name for name in OVERLAYS if name != "cpu"])
def test_scaling_begins_before_refusing_does(overlay: str) -> None:
    """Long answers fill rows, and neither queue nor cache: rows alone must be enough."""
    rows, requests = limits(config(render(overlay)))
    at = thresholds(overlay)
    assert set(at) == {
        "tiercel_requests_running", "tiercel_requests_waiting", "tiercel_kv_cache_usage_ratio"
    }  # fmt: skip
    assert rows / 2 <= at["tiercel_requests_running"] < rows / TOLERANCE
    # A tenth of the queue at most, so that a new pod may still come in time.
    assert 0 < at["tiercel_requests_waiting"] <= (requests - rows) / 10
    assert 0.5 < at["tiercel_kv_cache_usage_ratio"] < 1 / TOLERANCE


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_applying_again_leaves_the_number_of_pods(overlay: str) -> None:
    assert "replicas" not in one(render(overlay), "Deployment")["spec"]


def test_scaling_down_is_slow() -> None:
    hpa = one(render("a10g-7b"), "HorizontalPodAutoscaler")["spec"]
    assert hpa["behavior"]["scaleDown"]["stabilizationWindowSeconds"] >= 300
    assert one(render("tensor-parallel"), "ScaledObject")["spec"]["cooldownPeriod"] >= 300


def _quantity(text: str) -> float:
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)
