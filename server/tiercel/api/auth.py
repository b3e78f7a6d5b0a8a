"""Who may call what: the class of every route, the API keys, and the middleware that asks for them.

Deny by default. The decision is made from the method and the raw path of the ASGI scope, which is
what the router sees; never from `Host` or a rebuilt URL. Keys are kept as digests only.
"""

import hashlib
import hmac
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from re import Pattern

from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from tiercel.api.openai.errors import status_document
from tiercel.api.summary import summary_of
from tiercel.errors import ConfigError

MAX_KEYS_FILE_BYTES = 1 << 20
MAX_KEY_LENGTH = 512


class Access(Enum):
    """What a route asks of its caller once there are keys."""

    PUBLIC = "public"  # nothing: probes and descriptions
    DATA = "data"  # any key: all that takes a prompt, and whatever is not in the table
    ADMIN = "admin"  # an admin key


# Every route, by method and path as it is registered. HEAD is GET; OPTIONS never needs a key.
ROUTES: Mapping[str, Access] = {
    "GET /": Access.PUBLIC,
    "GET /health": Access.PUBLIC,
    "GET /ping": Access.PUBLIC,
    "GET /info": Access.PUBLIC,
    "GET /metrics": Access.PUBLIC,
    "GET /docs": Access.PUBLIC,
    "GET /api-doc/openapi.json": Access.PUBLIC,
    "GET /playground": Access.PUBLIC,
    "GET /v1/models": Access.PUBLIC,
    "GET /v1/models/{model_id:path}": Access.PUBLIC,
    "GET /v2": Access.PUBLIC,
    "GET /v2/health/live": Access.PUBLIC,
    "GET /v2/health/ready": Access.PUBLIC,
    "GET /v2/models/{name:path}/versions/{version}/ready": Access.PUBLIC,
    "GET /v2/models/{name:path}/ready": Access.PUBLIC,
    "GET /v2/models/{name:path}/versions/{version}": Access.PUBLIC,
    "GET /v2/models/{name:path}": Access.PUBLIC,
    "POST /v2/models/{name:path}/versions/{version}/infer": Access.DATA,
    "POST /v2/models/{name:path}/versions/{version}/generate": Access.DATA,
    "POST /v2/models/{name:path}/versions/{version}/generate_stream": Access.DATA,
    "POST /v2/models/{name:path}/infer": Access.DATA,
    "POST /v2/models/{name:path}/generate": Access.DATA,
    "POST /v2/models/{name:path}/generate_stream": Access.DATA,
    "POST /": Access.DATA,
    "POST /generate": Access.DATA,
    "POST /generate_stream": Access.DATA,
    "POST /tokenize": Access.DATA,
    "POST /chat_tokenize": Access.DATA,
    "POST /invocations": Access.DATA,
    "POST /vertex": Access.DATA,
    "POST /v1/chat/completions": Access.DATA,
    "POST /v1/completions": Access.DATA,
}
# What `--protect-metrics` moves: names and load of the deployment.
PROTECTED = ("GET /info", "GET /metrics")


@dataclass(frozen=True)
class ApiKey:
    """One key. `digest` is its SHA-256, which also names its tenant to the prefix cache."""

    name: str
    digest: bytes
    admin: bool = False


class KeyRing:
    """The keys that are valid now. Empty means that no key is asked for."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._keys = tuple(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def replace(self, keys: Iterable[ApiKey]) -> None:
        """From now on these keys and no others."""
        self._keys = tuple(keys)

    def find(self, authorization: bytes) -> ApiKey | None:
        """The key of an `authorization` header. Takes the same time whichever key it is."""
        scheme, _, credentials = authorization.partition(b" ")
        digest = hashlib.sha256(credentials.strip(b" ")).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found if scheme.lower() == b"bearer" else None


def load_keys(given: Sequence[str], file: Path | None, *, need_admin: bool = False) -> list[ApiKey]:
    """The keys of `--api-key` and of `--api-keys-file`, which are data keys unless marked admin.

    Raises ConfigError; its text never holds a key.
    """
    keys = [_key(f"key {n}", text, "--api-key") for n, text in enumerate(given, start=1)]
    if file is not None:
        keys += _read_keys(file)
    if len({key.digest for key in keys}) < len(keys):
        raise ConfigError("an API key is given twice: each key stands for one tenant")
    if need_admin and not any(key.admin for key in keys):
        raise ConfigError(
            "--protect-metrics needs an admin key: add a line `name:key:admin` to --api-keys-file"
        )
    return keys


def _read_keys(file: Path) -> list[ApiKey]:
    keys = []
    for number, line in enumerate(_text(file).splitlines(), start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        where = f"--api-keys-file {file}, line {number}"
        parts = [part.strip() for part in entry.split(":")]
        if len(parts) > 3 or (len(parts) == 3 and parts[2] != "admin"):
            raise ConfigError(f"{where}: a line is `key`, `name:key` or `name:key:admin`")
        name, text = (f"line {number}", parts[0]) if len(parts) == 1 else (parts[0], parts[1])
        keys.append(_key(name, text, where, admin=len(parts) == 3))
    if not keys:
        raise ConfigError(
            f"--api-keys-file {file} holds no key: add one per line, or drop the flag"
        )
    return keys


def _text(file: Path) -> str:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"--api-keys-file {file} is not a regular file")
        if status.st_mode & stat.S_IWOTH:
            raise ConfigError(
                f"--api-keys-file {file} can be written by everybody on this machine: "
                "take that away with `chmod o-w`"
            )
        if status.st_size > MAX_KEYS_FILE_BYTES:
            raise ConfigError(f"--api-keys-file {file} is larger than {MAX_KEYS_FILE_BYTES} bytes")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read --api-keys-file {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--api-keys-file {file} is not UTF-8 text") from None


def _key(name: str, text: str, where: str, *, admin: bool = False) -> ApiKey:
    if not 0 < len(text) <= MAX_KEY_LENGTH:
        raise ConfigError(f"{where}: a key has 1 to {MAX_KEY_LENGTH} characters")
    if not (text.isascii() and text.isprintable() and " " not in text):
        raise ConfigError(f"{where}: a key is made of printable ASCII characters without spaces")
    return ApiKey(name, hashlib.sha256(text.encode()).digest(), admin)


class RouteClasses:
    """Looks up the class of a request; `routes` is like ROUTES, paths may have `{parameters}`."""

    def __init__(self, routes: Mapping[str, Access]) -> None:
        self._exact = {route: access for route, access in routes.items() if "{" not in route}
        self._patterns: list[tuple[str, Pattern[str], Access]] = []
        for route, access in routes.items():
            if "{" in route:
                method, _, path = route.partition(" ")
                self._patterns.append((method, compile_path(path)[0], access))

    def of(self, method: str, path: str) -> Access:
        """DATA for what is in no table, so that nothing is open by mistake."""
        method = "GET" if method == "HEAD" else method
        exact = self._exact.get(f"{method} {path}")
        if exact is not None:
            return exact
        for known, pattern, access in self._patterns:
            if known == method and pattern.match(path):
                return access
        return Access.DATA


def route_classes(*, protect_metrics: bool, public: Iterable[str] = ()) -> RouteClasses:
    """The table for these settings. `public` are paths that a platform has chosen for its probe."""
    routes = dict(ROUTES)
    routes |= {f"GET {path}": Access.PUBLIC for path in public}
    if protect_metrics:
        routes |= dict.fromkeys(PROTECTED, Access.ADMIN)
    return RouteClasses(routes)


def tenant_of(scope: Scope) -> bytes:
    """The digest of the key that the request came with; empty when no key is asked for.

    What it is for: `cache_salt`, so that tenants never see each other's prefixes in the cache.
    """
    tenant = scope.get("state", {}).get("tenant", b"")
    return tenant if isinstance(tenant, bytes) else b""


class Authentication:
    """Pure ASGI: answers 401 and 403 itself, and notes the tenant in `scope["state"]`."""

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing,
        classes: RouteClasses,
        on_refused: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`on_refused` hears "unauthorized" or "forbidden"."""
        self._app = app
        self._on_refused = on_refused
        self._keys = keys
        self._classes = classes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan" or not self._keys:
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no websockets here, so nobody may open one
            await send({"type": "websocket.close", "code": 1008})
            return
        access = self._classes.of(scope["method"], scope["path"])
        key = self._keys.find(_authorization(scope))
        if key is not None:
            scope.setdefault("state", {})["tenant"] = key.digest
        if access is Access.PUBLIC or (key and (key.admin or access is Access.DATA)):
            await self._app(scope, receive, send)
        else:
            reason = "unauthorized" if key is None else "forbidden"
            self._on_refused(reason)
            summary_of(scope).refused(reason)
            await _refuse(send, scope["path"], 401 if key is None else 403)


def _authorization(scope: Scope) -> bytes:
    """The header's value; empty when there is none, or several that differ.

    huggingface_hub before 1.0 sends a caller's own header twice when it is asynchronous.
    """
    values = {bytes(value) for name, value in scope["headers"] if name == b"authorization"}
    return values.pop() if len(values) == 1 else b""


async def _refuse(send: Send, path: str, status: int) -> None:
    """TGI's empty body, and OpenAI's on its routes."""
    body = status_document(status).encode() if path.startswith("/v1/") else b""
    headers = [(b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if body:
        headers.append((b"content-type", b"application/json"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
