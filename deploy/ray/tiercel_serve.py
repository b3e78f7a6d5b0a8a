"""Tiercel on Ray Serve: `serve run tiercel_serve:build model=... num_shard=...`.

A replica is an actor that runs a real server beside it and hands requests through. The README says
what the arguments mean and what happens when something ends.
"""

import logging
import os
import sys
import threading
import time
from concurrent.futures import Future

import ray
from ray import serve
from ray.serve import Application
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from starlette.requests import Request
from tiercel_options import STOP_S, Options
from tiercel_passage import Passage, Upstream
from tiercel_process import (
    HEALTH_TIMEOUT_S,
    LOOPBACK,
    TiercelProcess,
    claim_port,
    free_port,
    health,
    rank_variables,
)

logger = logging.getLogger("ray.serve")

POLL_S = 0.2
HEALTH_S = 1.0
LAST_WORDS_S = 3.0  # as long as a server lives on after its engine


class Rank:
    """An actor that runs one rank other than the first, in its bundle of the replica's group."""

    def run(self, options: Options, variables: dict[str, str]) -> str:
        """Start the rank and wait for its end; returns how it ended."""
        process = TiercelProcess(options.python, options.server_flags(), variables)
        process.wait()
        return process.ended() or ""


@serve.deployment(name="Tiercel")
class Replica:
    """One server, of one or several ranks; as the first of them, it answers HTTP."""

    def __init__(self, options: Options) -> None:
        """Returns when the model is served. Raises RuntimeError with the server's own reason."""
        self._options = options
        self._name = serve.get_replica_context().replica_id.unique_id
        self._port = free_port()
        self._stopping = False
        self._ranks: list[ray.actor.ActorHandle] = []
        self._ends: list[Future[str]] = []  # of the ranks in self._ranks
        variables = self._start_ranks()
        self._server = TiercelProcess(options.python, self._flags(), variables)
        try:
            self._wait_healthy()
        except RuntimeError:
            self.__del__()
            raise
        self._upstream = Upstream(self._port, self._name)
        for watch in (self._await_end, self._await_giving_up):
            threading.Thread(target=watch, daemon=True).start()
        logger.info(
            f"Tiercel is ready: replica {self._name} is process {os.getpid()}, "
            f"its server {self._server.pid}, at port {self._port}."
        )

    async def __call__(self, request: Request) -> Passage:
        """Any method, any path."""
        return Passage(self._upstream, request)

    async def check_health(self) -> None:
        """Raises RuntimeError or httpx.HTTPError when Serve should replace this replica."""
        if (lost := self._lost()) is not None:
            raise RuntimeError(lost)
        status = (await self._upstream.client.get("/health", timeout=HEALTH_TIMEOUT_S)).status_code
        if status != 200:
            raise RuntimeError(f"the server's /health answers {status}")

    def __del__(self) -> None:
        """Serve calls this when the replica has drained: the server ends, then the other ranks."""
        self._stopping = True
        if hasattr(self, "_server"):
            self._server.stop(STOP_S - 5.0)
        for rank in self._ranks:  # the first rank has told them to end
            ray.kill(rank)
        self._ranks = []

    def _flags(self) -> list[str]:
        flags = [*self._options.server_flags(), "--hostname", LOOPBACK, "--port", str(self._port)]
        if ports := self._options.ports_of_metrics():
            port, self._claim = claim_port(ports)
            flags += ["--prometheus-port", str(port)]
        return flags

    def _start_ranks(self) -> dict[str, str]:
        """The other ranks; returns the variables of the first."""
        size = self._options.num_shard
        if size == 1:
            return {}
        address = ray.util.get_node_ip_address()
        port = free_port(address)
        on_gpu = self._options.device == "cuda"
        for number in range(1, size):
            place = PlacementGroupSchedulingStrategy(
                ray.util.get_current_placement_group(), placement_group_bundle_index=number
            )
            resources = self._options.rank_resources()
            rank = ray.remote(Rank).options(scheduling_strategy=place, **resources).remote()
            variables = rank_variables(number, size, address, port, on_gpu=on_gpu)
            self._ranks.append(rank)
            self._ends.append(rank.run.remote(self._options, variables).future())
        return rank_variables(0, size, address, port, on_gpu=on_gpu)

    def _lost(self) -> str | None:
        """Which process of this replica is gone, and how."""
        for number, end in enumerate(self._ends, start=1):
            if end.done():
                return f"rank {number}: {end.exception() or end.result()}"
        end_of_server = self._server.ended()
        return None if end_of_server is None else f"the server: {end_of_server}"

    def _wait_healthy(self) -> None:
        deadline = time.monotonic() + self._options.start_s
        while health(self._port) != 200:
            if (lost := self._lost()) is not None:
                raise RuntimeError(f"Tiercel cannot start; {lost}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"Tiercel was not ready after {self._options.start_s:g} s")
            time.sleep(POLL_S)

    def _await_end(self) -> None:
        self._server.wait()
        self._leave()

    def _await_giving_up(self) -> None:
        """A server whose engine has died tells its clients so, serves nobody, and ends later."""
        while True:
            self._upstream.trouble.wait(HEALTH_S)
            self._upstream.trouble.clear()
            if health(self._port) == 503:
                break
        self._upstream.given_up = not self._stopping
        deadline = time.monotonic() + LAST_WORDS_S
        while self._upstream.in_flight and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.1)  # what was handed to Serve leaves this process
        self._leave()

    def _leave(self) -> None:
        """End this actor, of which Serve knows at once, rather than fail three health checks.

        Until those are over, Serve would go on to send requests here.
        """
        if self._stopping:
            return
        logger.error(f"This replica ends. {self._lost() or 'Its server has given up.'}")
        sys.stderr.flush()
        os._exit(1)


def build(options: Options) -> Application:
    """The application. Arguments that are unknown or make no sense are a ValueError."""
    return Replica.options(**options.deployment()).bind(options)
