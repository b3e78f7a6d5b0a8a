"""One Ray for all tests of deploy/ray."""

from collections.abc import Iterator

import pytest

from support.ray_serve import RAY_BIN, RayMachine, ray_machine


@pytest.fixture(scope="session")
def machine() -> Iterator[RayMachine]:
    """A running Ray; skips where `make ray` has not installed one."""
    if not (RAY_BIN / "serve").exists():
        pytest.skip("Ray is not installed: `make ray` does it")
    with ray_machine() as running:
        yield running
