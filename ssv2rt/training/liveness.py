"""Liveness of the processes that train together: when one ends too early, all others learn which one, and why.

Collective operations do not tell: gloo says that some connection was closed, and NCCL may wait for minutes. So each process
keeps a connection to rank 0. The operating system closes it when the process ends, however that happens, and rank 0 tells the
others. A process that does not end by itself then, since it waits in a collective operation, is ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from torch.distributed.distributed_c10d import Store

from ssv2rt.core.errors import UserError, one_line
from ssv2rt.core.log import printable

START_SECONDS = 600.0
"""How long processes wait for each other when they start: others may still import libraries from slow storage."""
_GRACE_SECONDS = 20.0
"""How long a process may go on after another has ended, such as to finish a batch or to fail by itself."""
_LONGEST_LINE = 10_000
_KEY = "liveness"


class Liveness:
    """This process's connection to rank 0; in rank 0, those of all others.

        with Liveness(store, rank, size, local_rank=local_rank, device="cuda") as liveness:
            ...  # if this fails, the others are told why

    Args:
        store: what the processes share before they are connected.
        rank: of this process.
        size: the world size.
        local_rank: number of this process on its machine.
        device: type of device of this process, the same in all.

    Raises:
        UserError: not all processes have come within ten minutes, one has ended, or one has another type of device.
    """

    def __init__(self, store: Store, rank: int, size: int, *, local_rank: int, device: str) -> None:
        self._loss: tuple[int, str] | None = None
        """Which other process has ended, and why, as a sentence."""
        self._news, self._complete, self._closed = threading.Event(), threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._connections: dict[int, socket.socket] = {}
        self._names = {rank: f"rank {rank} (process {os.getpid()} on {socket.gethostname()})"}
        self._rank, self._size, self._local_rank, self._device = rank, size, local_rank, device
        self._server: socket.socket | None = None
        try:
            if rank == 0:
                self._serve(store)
            else:
                self._connect(store)
            self.wait(self._complete.is_set, self._late)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def __enter__(self) -> Liveness:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Says farewell to the other processes, the first time that it is called."""
        if self._closed.is_set():
            return
        self._closed.set()
        with self._lock:
            connections = list(self._connections.values())
        for connection in connections:
            _send(connection, {"over": failure(error)})
            with contextlib.suppress(OSError):  # its process has ended
                connection.shutdown(socket.SHUT_RDWR)
        if self._server:
            self._server.close()

    def known_loss(self, seconds: float = 5.0) -> UserError | None:
        """The error that says which process has ended, as soon as that is known; None if it is not after some seconds."""
        self._news.wait(seconds)
        if not self._loss:
            return None
        error = UserError(self._loss[1])
        error.silent = not self._speaks()
        return error

    def wait(self, done: Callable[[], bool], late: Callable[[], str], seconds: float = START_SECONDS) -> None:
        """Waits until `done` is true.

        Raises:
            UserError: another process has ended; or, with what `late` says, the time is over.
        """
        deadline, pause = time.monotonic() + seconds, 0.02
        while not done():
            if self._loss and (error := self.known_loss()):
                raise error
            if time.monotonic() > deadline:
                raise UserError(f"{late()}; see the messages of the other processes and machines, and start all again")
            time.sleep(pause)
            pause = min(1.0, 1.2 * pause)

    def _serve(self, store: Store) -> None:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self._server = server = socket.create_server(("", 0), family=family, backlog=self._size, dualstack_ipv6=both)
        token = secrets.token_hex()  # so that nobody else can join
        store.set(_KEY, json.dumps([server.getsockname()[1], token, self._names[0]]))

        def accept() -> None:
            with contextlib.suppress(OSError):  # closed
                while True:
                    _in_background(self._welcome, server.accept()[0], token)

        _in_background(accept)

    def _welcome(self, connection: socket.socket, token: str) -> None:
        """Follows another process, as rank 0."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            connection.settimeout(30)
            lines = connection.makefile("rb")
            hello = json.loads(lines.readline(_LONGEST_LINE))
            if not secrets.compare_digest(hello["token"], token):
                return
            connection.settimeout(None)
            _keep_alive(connection)
            rank, name, device = hello["rank"], hello["name"], hello["device"]
            with self._lock:
                self._connections[rank], self._names[rank] = connection, name
                complete = len(self._connections) == self._size - 1
                connections = list(self._connections.values())
            if device != self._device:
                self._end(
                    rank, f"{name} has the device {device}, and rank 0 {self._device}; start all on the same kind"
                )
            if complete:
                for other in connections:
                    _send(other, {"complete": True})
                self._complete.set()
            self._follow(lines, rank)

    def _connect(self, store: Store) -> None:
        self.wait(lambda: store.check([_KEY]), self._late)
        port, token, name = json.loads(store.get(_KEY))
        host = os.environ["MASTER_ADDR"]
        try:
            connection = socket.create_connection((host, port), timeout=60)
        except OSError as error:
            raise UserError(
                f"{self._names[self._rank]} cannot reach rank 0 at {host}, port {port}: {error.strerror or error}; open "
                f"all ports between the machines that train together"
            ) from None
        connection.settimeout(None)
        _keep_alive(connection)
        self._connections[0], self._names[0] = connection, name
        hello = {"token": token, "rank": self._rank, "name": self._names[self._rank], "device": self._device}
        _send(connection, hello)
        _in_background(self._follow, connection.makefile("rb"), 0)

    def _follow(self, lines: Iterable[bytes], rank: int) -> None:
        """Reads what another process says until it ends."""
        with contextlib.suppress(OSError, ValueError):
            for line in lines:
                message = json.loads(line)
                if "complete" in message:
                    self._complete.set()
                elif "lost" in message:
                    self._end(*message["lost"])
                elif "over" in message:
                    if message["over"]:
                        self._end(rank, f"{self._names[rank]} failed: {message['over']}")
                    return
        self._end(
            rank,
            f"{self._names[rank]} was killed, or its machine or network failed; see the log of that machine, and continue "
            f"from the last checkpoint with `--resume`",
        )

    def _end(self, rank: int, why: str) -> None:
        """Another process has ended: tells the others, and ends this process if it does not end by itself."""
        with self._lock:
            if self._loss or self._closed.is_set():
                return
            self._loss = rank, why
            connections = list(self._connections.values()) if self._server else []
        for connection in connections:
            _send(connection, {"lost": [rank, why]})
        self._news.set()
        if not self._closed.wait(_GRACE_SECONDS):
            if self._speaks():
                print(f"Error: {printable(why)}", file=sys.stderr, flush=True)
            os._exit(1)

    def _speaks(self) -> bool:
        """Whether this process says which one has ended: on each machine the first that is left does."""
        first_is_lost = self._loss is not None and self._loss[0] == self._rank - self._local_rank
        return self._local_rank == (1 if first_is_lost else 0)

    def _late(self) -> str:
        """That not all have started, as the beginning of a message."""
        missing = [f"rank {rank}" for rank in range(self._size) if rank not in self._names]
        who = ", ".join(missing) if self._server else "another process"
        return f"{who} did not start within {START_SECONDS / 60:.0f} minutes"


def failure(error: BaseException | None) -> str:
    """Why a process fails; empty if it does not, as after a signal to stop, which all processes follow."""
    if error is None or (isinstance(error, UserError) and error.exit_code > 128):
        return ""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"


def _in_background(call: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=call, args=arguments, name="ssv2rt-liveness", daemon=True).start()


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # its process has ended
        connection.sendall(f"{json.dumps(message)}\n".encode())


def _keep_alive(connection: socket.socket) -> None:
    """Notices within 40 seconds that the machine at the other end has gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3)):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
