"""Connects to a Ray cluster, checks its nodes, and decides what resources an actor gets."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ssv2rt
from ssv2rt.core.cores import cores
from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.core.temporary import make_temporary_folder, outer_temporary_folder, remove_temporary_folder

logger = logging.getLogger(__name__)


AUTO = "auto"
_MAX_CORES = 16
"""For one actor; a larger node runs several. One worker process cannot keep more cores busy."""
_MIN_CORES = 4
"""Nodes with fewer cores do not determine an actor's size, unless all nodes are that small."""
_VERSION_TIMEOUT = 60.0
"""Seconds in which every node has to report its version of this package."""

_MAX_FOLDER_LENGTH = 20
"""Bytes. A Unix socket's path may have 107, and Ray appends long names to the folder's."""
_RAY_ENVIRONMENT = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # or Ray prints on stdout what happens to its processes
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a deprecation warning
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Environment variables that Ray reads on import. Its messages should go to its log files only."""


@dataclass(frozen=True)
class ActorResources:
    """Resources of one actor."""

    gpu: bool
    cores: int = 0
    """CPU cores; unused if it has a GPU."""

    def count(self, nodes: Iterable[dict[str, Any]]) -> int:
        """How many such actors fit on the nodes."""
        kind, size = ("GPU", 1) if self.gpu else ("CPU", self.cores)
        return sum(int(node["Resources"].get(kind, 0) // size) for node in nodes)


def resources_per_actor(on_gpu: bool, nodes: Sequence[dict[str, Any]]) -> ActorResources:
    """One GPU; or, for an engine built for a CPU, as many cores as the smallest node has, within limits.

    Args:
        on_gpu: whether the engine runs on a GPU.
        nodes: descriptions of the cluster's nodes by Ray.

    Raises:
        UserError: no node has such resources.
    """
    if on_gpu:
        resources = ActorResources(gpu=True)
    else:
        sizes = [int(node["Resources"].get("CPU", 0)) for node in nodes]
        smallest = min((size for size in sizes if size >= _MIN_CORES), default=max(sizes, default=0))
        resources = ActorResources(gpu=False, cores=max(1, min(smallest, _MAX_CORES)))
    if not resources.count(nodes):
        what = "GPU" if resources.gpu else "CPU"
        raise UserError(f"the cluster has no {what}, which the engine needs; add machines, or take another engine")
    return resources


def connect(address: str) -> str | None:
    """Connects to a running cluster, or starts one on this machine.

    Returns:
        The temporary folder of a cluster that was started, for the caller to remove; None for a running one.

    Raises:
        UsageError, UserError: see `RayBackend.__enter__`.
    """
    for name, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(f"--cluster needs Ray ({error}); install it: pip install 'ssv2rt[cluster]'") from None
    sigterm_handler = signal.getsignal(signal.SIGTERM)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == AUTO:
        address = os.environ.get("RAY_ADDRESS", AUTO)
    if address != AUTO:
        _check_address(address)
    try:
        with _stderr_muted():
            ray.init(address=address, **quiet)
        return None
    except ConnectionError as error:
        if address != AUTO:
            raise UserError(
                f"--cluster {address}: {first_error_line(error)}; run it on a machine of the cluster"
            ) from None
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--cluster {address}: {first_error_line(error)}") from None
    finally:
        _restore_sigterm(sigterm_handler)
    logger.info("no Ray cluster is running; starting one on this machine")
    folder = make_temporary_folder("ssv2rt-ray-", _short_folder(outer_temporary_folder()))
    try:
        with _stderr_muted():
            ray.init(address="local", num_cpus=cores(), include_dashboard=False, _temp_dir=folder, **quiet)
    except BaseException:
        remove_temporary_folder(folder)
        raise
    finally:
        _restore_sigterm(sigterm_handler)
    return folder


def _short_folder(folder: str) -> str:
    """`folder`, or /tmp if its path is too long for the sockets that Ray creates below it."""
    return folder if len(os.fsencode(folder)) <= _MAX_FOLDER_LENGTH else "/tmp"


@contextlib.contextmanager
def _stderr_muted() -> Iterator[None]:
    """Discards what is written to file descriptor 2: Ray's native code writes to it in spite of its settings."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as devnull:
            os.dup2(devnull.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _restore_sigterm(sigterm_handler: Any) -> None:
    """Restores our SIGTERM handler, which saves the run's state: `ray.init` replaces it with its own."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, sigterm_handler)


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
    """Descriptions of the nodes that are alive."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def on_node(node: str) -> dict[str, str]:
    """The label selector for a node, by its id."""
    return {"ray.io/node-id": node}


def check_versions(nodes: Sequence[dict[str, Any]]) -> None:
    """Checks that every node has this version of the package.

    Raises:
        UserError: a node has another version, lacks the package, or does not answer.
    """
    import ray

    def version() -> str | None:  # pickled by value, since the node may lack the package
        try:
            import ssv2rt
        except ImportError:
            return None
        return ssv2rt.__version__

    remote_version = ray.remote(num_cpus=0, max_retries=0)(version)
    node_of = {
        remote_version.options(label_selector=on_node(node["NodeID"])).remote(): node["NodeManagerAddress"]
        for node in nodes
        if node["Resources"].get("CPU") or node["Resources"].get("GPU")
    }
    answered, silent = (
        ray.wait(list(node_of), num_returns=len(node_of), timeout=_VERSION_TIMEOUT) if node_of else ([], [])
    )
    for answer in answered:
        check_version(f"the machine {node_of[answer]}", ray.get(answer), ssv2rt.__version__)
    if silent:
        raise UserError(f"the machine {node_of[silent[0]]} of the cluster does not answer; see `ray status`")


def check_version(where: str, there: str | None, here: str) -> None:
    if there != here:
        has = f"ssv2rt {there}" if there else "no ssv2rt"
        raise UserError(f"{where} has {has}, and this one {here}; install the same on all: pip install ssv2rt=={here}")


def first_error_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
