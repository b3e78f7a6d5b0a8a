"""What is wrong with the arguments is said where the operator looks."""

import pytest

from support.ray_serve import Application, RayMachine, command, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("nun_shard=2", "unknown: nun_shard; known: model, num_shard, "),
        ("num_shard=none", "num_shard"),
        ("min_replicas=3", "min_replicas must not be more than max_replicas"),
        ("flags=--max-batch-size 4 --port 80", "flags: --port is the replica's to set"),
        ("metrics_ports=9500-9400", "metrics_ports: FIRST must not be more than LAST"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_starts(
    machine: RayMachine, argument: str, said: str
) -> None:
    done = command("run", f"--address={machine.address}", "tiercel_serve:build", argument)
    assert done.returncode != 0
    assert said in done.stdout + done.stderr


def test_a_server_that_cannot_start_says_why(machine: RayMachine) -> None:
    with Application(machine, model="/no/such/folder") as application:

        def failed() -> bool:
            return "Failed to update the deployments" in machine.logs("controller_*.log")

        until(failed, "the end of all attempts")
        reason = "Tiercel cannot start; the server: process"
        line = next(line for line in application.said().splitlines() if reason in line)
        assert "ended with exit code 2: tiercel: error: " in line
        assert "/no/such/folder" in line
