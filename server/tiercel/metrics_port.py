"""The second port, for metrics alone: `--prometheus-port`. Same loop, same text, no other route."""

import asyncio
import socket

import uvicorn
from starlette.types import ASGIApp

from tiercel.api.http_protocol import ReceiveLimits, limited_protocol
from tiercel.listen import HttpServer


class MetricsPort:
    """Serves `app` on a bound socket from `start` to `stop`."""

    def __init__(self, app: ASGIApp, listener: socket.socket, limits: ReceiveLimits) -> None:
        self._listener = listener
        self._server = HttpServer(
            uvicorn.Config(
                app,
                http=limited_protocol(limits),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._serving: asyncio.Future[None] | None = None

    def start(self) -> None:
        """On the running loop."""
        self._serving = asyncio.ensure_future(self._server.serve(sockets=[self._listener]))

    async def stop(self) -> None:
        """Answers under way are finished."""
        if self._serving is not None:
            self._server.should_exit = True
            await asyncio.gather(self._serving, return_exceptions=True)
        self._listener.close()
