"""Liveness: each process learns which of the others has ended, and why. Here all of them are in one process."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from ssv2rt.core.errors import UserError
from ssv2rt.training.liveness import Liveness
from ssv2rt.training.signals import Stopped


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")


@pytest.fixture
def three() -> Iterator[list[Liveness]]:
    """Ranks 0 and 1 of one machine, and rank 2 of another."""
    store = HashStore()
    with ThreadPoolExecutor(3) as pool:
        started = [
            pool.submit(Liveness, store, rank, 3, local_rank=local, device="cpu")
            for rank, local in ((0, 0), (1, 1), (2, 0))
        ]
        found = [future.result(60) for future in started]
    yield found
    for one in found:
        one.__exit__(None, None, None)


def cut(one: Liveness) -> None:
    """Closes the connections of a process, as the operating system does when it ends, and it says nothing more."""
    one._closed.set()
    if one._server:
        one._server.close()
    for connection in one._connections.values():
        connection.shutdown(socket.SHUT_RDWR)


def loss(one: Liveness) -> UserError:
    error = one.known_loss(30)
    assert error is not None
    return error


@pytest.mark.parametrize(
    ("ended", "silent"), [(0, {1: False, 2: False}), (1, {0: False, 2: False}), (2, {0: False, 1: True})]
)
def test_all_others_learn_which_process_has_ended(three: list[Liveness], ended: int, silent: dict[int, bool]) -> None:
    """Of those on one machine, the first that is left says it."""
    cut(three[ended])
    for rank, quiet in silent.items():
        error = loss(three[rank])
        assert str(error).startswith(f"rank {ended} (process ") and "was killed, or its machine or network" in str(
            error
        )
        assert error.silent == quiet, rank


def test_a_process_that_fails_tells_the_others_why(three: list[Liveness]) -> None:
    with pytest.raises(UserError), three[1]:
        raise UserError("no data 'x'; give another")
    for rank in (0, 2):
        assert str(loss(three[rank])).endswith(" failed: no data 'x'; give another")
    with pytest.raises(UserError, match=r"rank 1 .* failed: no data"):
        three[0].wait(lambda: False, lambda: "late")


def test_processes_that_end_well_are_not_missed(three: list[Liveness]) -> None:
    with three[1]:
        pass
    with pytest.raises(Stopped), three[2]:
        raise Stopped("stopped by SIGTERM", 15)
    with three[0]:
        assert three[0].known_loss(0.2) is None


def test_processes_that_do_not_come_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Liveness.wait, "__defaults__", (0.1,))
    with pytest.raises(
        UserError, match=r"rank 1, rank 2 did not start within 10 minutes; see the messages of the other"
    ):
        Liveness(HashStore(), 0, 3, local_rank=0, device="cpu")


def test_a_process_on_another_kind_of_device_is_refused() -> None:
    store = HashStore()
    with ThreadPoolExecutor(2) as pool:
        started = [
            pool.submit(Liveness, store, rank, 2, local_rank=0, device=device)
            for rank, device in ((0, "cuda"), (1, "cpu"))
        ]
        for future in started:
            with pytest.raises(
                UserError, match="rank 1 .* has the device cpu, and rank 0 cuda; start all on the same kind"
            ):
                future.result(60)


def test_a_stranger_cannot_join(three: list[Liveness]) -> None:
    server = three[0]._server
    assert server is not None
    with socket.create_connection(("127.0.0.1", server.getsockname()[1])) as stranger:
        stranger.sendall(b'{"token": "guessed", "rank": 1, "name": "x", "device": "cpu"}\n')
    with socket.create_connection(("127.0.0.1", server.getsockname()[1])) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert three[0].known_loss(0.2) is None
