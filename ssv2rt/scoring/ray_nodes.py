"""The machines of a Ray cluster: finding them, and looking whether they are fit for the work."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ssv2rt
from ssv2rt.core.cores import cores
from ssv2rt.core.errors import UsageError, UserError

logger = logging.getLogger(__name__)


AUTO = "auto"
_MOST_CORES = 16
"""Of one process; a larger machine has several. One process cannot keep very many cores busy."""
_FEWEST_CORES = 4
"""A smaller machine does not decide what a process has, unless all are."""
_ANSWER = 60.0
"""Seconds in which each machine has to say which version it has."""

_PATH = 20
"""Bytes of a folder's path that leave room for Ray's names in the 107 that a socket's path may have."""
_QUIET = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # it would print what happens to its processes, on stdout
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a warning about a change to come
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What Ray reads as it is loaded: its words go to its files, and not to the user, who has ours."""


@dataclass(frozen=True)
class Slot:
    """What one process has of the cluster."""

    gpu: bool
    cores: int = 0
    """Without a GPU: how many it uses."""

    def count(self, nodes: Iterable[dict[str, Any]]) -> int:
        """How many there are on these machines."""
        kind, size = ("GPU", 1) if self.gpu else ("CPU", self.cores)
        return sum(int(node["Resources"].get(kind, 0) // size) for node in nodes)


def slot_for(target: str, nodes: Sequence[dict[str, Any]]) -> Slot:
    """One GPU; or as many cores as the smallest machine has, within limits.

    Args:
        target: what the engine was built for.
        nodes: the cluster's machines, as Ray describes them.

    Raises:
        UserError: there is none in the cluster.
    """
    if target.startswith("sm"):
        slot = Slot(gpu=True)
    else:
        sizes = [int(node["Resources"].get("CPU", 0)) for node in nodes]
        smallest = min((size for size in sizes if size >= _FEWEST_CORES), default=max(sizes, default=0))
        slot = Slot(gpu=False, cores=max(1, min(smallest, _MOST_CORES)))
    if not slot.count(nodes):
        what = "GPU" if slot.gpu else "CPU"
        raise UserError(
            f"the cluster has no {what}, and the engine is for '{target}'; add machines, or take another engine"
        )
    return slot


def connect(address: str) -> str | None:
    """Connects to a cluster. Returns a folder to be removed, of one that was started for it."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(f"--cluster needs Ray ({error}); install it: pip install 'ssv2rt[cluster]'") from None
    terminate = signal.getsignal(signal.SIGTERM)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == AUTO:
        address = os.environ.get("RAY_ADDRESS", AUTO)
    if address != AUTO:
        _check_address(address)
    try:
        with _silent():
            ray.init(address=address, **quiet)
        return None
    except ConnectionError as error:
        if address != AUTO:
            raise UserError(f"--cluster {address}: {first_line(error)}; run it on a machine of the cluster") from None
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--cluster {address}: {first_line(error)}") from None
    finally:
        _keep(terminate)
    logger.info("no Ray cluster is running; starting one of this machine")
    folder = tempfile.mkdtemp(prefix="ssv2rt-ray-", dir=_short(tempfile.gettempdir()))
    try:
        with _silent():
            ray.init(address="local", num_cpus=cores(), include_dashboard=False, _temp_dir=folder, **quiet)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        _keep(terminate)
    return folder


def _short(folder: str) -> str:
    """A folder, or /tmp where its path is too long for Ray's sockets below it."""
    return folder if len(os.fsencode(folder)) <= _PATH else "/tmp"


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Ray's core says on stderr how it was told to be silent."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _keep(terminate: Any) -> None:
    """Ray puts a handler of its own in the place of ours, which saves."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)


def _check_address(address: str) -> None:
    host, colon, port = address.rpartition(":")
    if "://" in address or not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
        raise UsageError(f"--cluster {address}: write HOST:PORT of the cluster's head, or {AUTO}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"--cluster {address}: nothing answers there ({error.strerror or error}); start a cluster with `ray start --head`"
        ) from None


def ray_nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def on(node: str) -> dict[str, str]:
    return {"ray.io/node-id": node}


def check_versions(nodes: Sequence[dict[str, Any]]) -> None:
    """Asks every machine.

    Raises:
        UserError: one has another version of this package, or none, or does not answer.
    """
    import ray

    def version() -> str | None:  # goes as code, since there may be no package to find it in
        try:
            import ssv2rt
        except ImportError:
            return None
        return ssv2rt.__version__

    ask = ray.remote(num_cpus=0, max_retries=0)(version)
    names = {
        ask.options(label_selector=on(node["NodeID"])).remote(): node["NodeManagerAddress"]
        for node in nodes
        if node["Resources"].get("CPU") or node["Resources"].get("GPU")
    }
    answered, silent = ray.wait(list(names), num_returns=len(names), timeout=_ANSWER) if names else ([], [])
    for answer in answered:
        check_version(f"the machine {names[answer]}", ray.get(answer), ssv2rt.__version__)
    if silent:
        raise UserError(f"the machine {names[silent[0]]} of the cluster does not answer; see `ray status`")


def check_version(where: str, there: str | None, here: str) -> None:
    if there != here:
        has = f"ssv2rt {there}" if there else "no ssv2rt"
        raise UserError(f"{where} has {has}, and this one {here}; install the same on all: pip install ssv2rt=={here}")


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
