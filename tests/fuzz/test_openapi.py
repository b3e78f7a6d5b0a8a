"""schemathesis over our own OpenAPI: whatever is sent, the answer is one that is documented.

`make test-all` tries a few cases per operation, `make fuzz` three hundred (FUZZ_CASES).
"""

import os
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from support.edge_server import EdgeServer, say

CASES = int(os.environ.get("FUZZ_CASES", "8"))
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
FUZZ = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[EdgeServer]:
    """The real edge, on a real socket; only the engine behind it is scripted, and brief."""
    with EdgeServer(say(" a", eos=True)) as server:
        yield server


@pytest.fixture(scope="module")
def operations(fuzzed: EdgeServer) -> list[APIOperation]:
    document = fuzzed.http.get("/api-doc/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=fuzzed.url)
    return [result.ok() for result in schema.get_all_operations()]


def attack(operation: APIOperation, mode: GenerationMode) -> None:
    @FUZZ
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: Case) -> None:
        response = case.call(timeout=20)
        assert response.status_code < 500 or response.status_code == 503, case.as_curl_command()
        case.validate_response(response, checks=CHECKS)

    one()


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.name.lower())
def test_answers_are_documented(
    fuzzed: EdgeServer, operations: list[APIOperation], mode: GenerationMode
) -> None:
    failed = []
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue  # there is nothing to get wrong
        try:
            attack(operation, mode)
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 (all are reported)
            failed.append(f"{operation.method.upper()} {operation.path}: {error}")
    assert not failed, "\n\n".join(failed)
    assert fuzzed.state.in_flight == 0
    assert fuzzed.engine.running == 0
    assert fuzzed.http.get("/health").status_code == 200
