"""The way to a Ray cluster: one that is there, or a local one that starts and ends with whoever needs it.

Ray changes handlers of signals and writes to standard output; both are taken back here.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

from evometa.backends.ray_local import ENVIRONMENT, Keeper
from evometa.errors import ConfigError

_PATIENCE = 10.0  # seconds for an address to answer at all
_KNOCK = 2.0  # seconds for the head of a cluster that was there a moment ago
ANOTHER_TOKEN = (
    "it asks for another token than this process has. Copy the cluster's ~/.ray/auth_token here and set"
    " RAY_AUTH_MODE=token (see: ray get-auth-token)"
)


class Connection:
    """This process's way to a cluster. Several engines share it; it ends with the last."""

    def __init__(self) -> None:
        self.users, self.local, self.ours = 0, False, False
        self._keeper: Keeper | None = None
        self._before: dict[str, str | None] = {}

    def acquire(self, workers: int | None) -> Any:
        """Ray, connected. RAY_ADDRESS names the cluster; where it does not, one of `workers` CPUs (None: all)
        is started here.

        Raises `ConfigError` where Ray or the cluster cannot be used, with what to do.
        """
        if self.users == 0:
            self._open(workers)
        self.users += 1
        import ray

        return ray

    def release(self) -> None:
        """One user less; the last one ends the connection, and a local cluster with it."""
        self.users -= 1
        if self.users == 0:
            self._close()

    def answers(self) -> bool:
        """Whether the head is there. To be asked before Ray is: it would wait, and end the process after a minute."""
        host, _, port = str(sys.modules["ray"].get_runtime_context().gcs_address).rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _KNOCK).close()
        except OSError:
            return False
        return True

    # --- one connection --------------------------------------------------------------------------

    def _open(self, workers: int | None) -> None:
        address = os.environ.get("RAY_ADDRESS", "").strip()
        self.local = address in ("", "local")
        try:
            with _handlers_kept():
                if self.local:
                    self._set(ENVIRONMENT)  # before Ray is imported, which reads it
                ray = _import()
                if ray.is_initialized():  # by whoever calls evometa: theirs to end
                    return
                self.ours = True
                _hush()
                if self.local:
                    _read_again(alone=True)
                    self._keeper = Keeper(workers)
                    address = self._keeper.address
                _join(ray, address)
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        if self.ours:
            with _handlers_kept():
                sys.modules["ray"].shutdown()
        if self._keeper is not None:
            self._keeper.close()
        local, self.ours, self._keeper = bool(self._before), False, None
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._before = {}
        if local and "ray" in sys.modules:
            _read_again(alone=False)

    def _set(self, names: dict[str, str]) -> None:
        for name, value in names.items():
            self._before.setdefault(name, os.environ.get(name))
            os.environ[name] = value


connection = Connection()
_SILENT: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}


def _read_again(alone: bool) -> None:
    """Have Ray see the environment as it is now, in a process that may have imported it before."""
    inside: Any = importlib.import_module("ray._raylet")
    constants: Any = importlib.import_module("ray._private.ray_constants")
    constants.ENABLE_RAY_CLUSTER = not alone and sys.platform == "linux"
    inside.Config.initialize("")
    inside.AuthenticationTokenLoader.instance().reset_cache()


def _import() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"the ray backend needs Ray ({error}). Type: pip install 'evometa[ray]'") from None
    return ray


def _join(ray: Any, address: str) -> None:
    """Connect to a cluster that is there."""
    if "://" in address:
        raise ConfigError(
            f"RAY_ADDRESS: expected HOST:PORT or auto, got {address!r}. A run drives the cluster from one of its nodes:"
            " start it there, or send it there with: ray job submit"
        )
    if address != "auto":
        _knock(address)
    try:
        ray.init(address=address, **_SILENT)
    except Exception as error:
        raise ConfigError(f"the Ray cluster at {address} cannot be used: {_why(error)}") from error


def _knock(address: str) -> None:
    """Raise `ConfigError` where nobody answers: Ray itself would wait for minutes, and then end the process."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no Ray cluster answers at {address} ({error}). Start one with: ray start --head, put its address into"
            " RAY_ADDRESS, or unset that for a local one"
        ) from None


def _why(error: BaseException) -> str:
    """What is wrong with a cluster, and the fix, in one line."""
    words = " ".join(str(one) for one in _chain(error))
    if "Version mismatch" in words:
        import ray

        text = " ".join(words[words.index("Version mismatch") :].split())[:400]
        return f"{text} Install the cluster's version here: pip install ray==VERSION (here: {ray.__version__})"
    if refuses_token(words):
        return ANOTHER_TOKEN
    if isinstance(error, ConnectionError) and "Could not find any running Ray instance" in words:
        return "there is none on this machine. Start one with: ray start --head, or unset RAY_ADDRESS for a local one"
    return f"{_first_line(error)}. This process must run on a node of the cluster; look at it there with: ray status"


def refuses_token(words: str) -> bool:
    """Whether Ray's words say that a cluster asks for a token that this process does not have."""
    return "uthenticat" in words or "nvalid token" in words


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")


def _hush() -> None:
    """Ray prints what goes wrong in a cluster to standard output, which belongs to data; the engine says it itself."""
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *_, **__: None
    logging.getLogger("ray").setLevel(logging.ERROR)


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """SIGINT and SIGTERM as they were before Ray came."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
