"""Tests here count processes, and other tests leave servers running that have some."""

import pytest

from support.sandbox import leave_out_what_runs


@pytest.fixture(autouse=True)
def only_own_processes() -> None:
    leave_out_what_runs()
