"""Two machines for training, as two folders that share nothing but the data."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


class Nodes:
    """Two nodes, each with a working folder, a home and a cache of its own.

    On each runs torchrun, or the process that it would start, which takes less time.
    """

    def __init__(self, folder: Path) -> None:
        self.folders = [folder / "node0", folder / "node1"]
        for place in self.folders:
            (place / "home").mkdir(parents=True)

    def start(self, *words: object, torchrun: bool = False, on: tuple[int, ...] = (0, 1)) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes = []
        for node in on:
            place = self.folders[node]
            command, own = [sys.executable], {"HOME": str(place / "home"), "XDG_CACHE_HOME": str(place / "home/.cache")}
            if torchrun:
                command += ["-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(node)]
                command += ["--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
            else:
                own |= {"RANK": str(node), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
                own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            command += ["-m", "ssv2rt", "train", *(str(word).format(node=node) for word in words)]
            environment = {name: value for name, value in os.environ.items() if name != "SSV2RT_CACHE"} | own
            with (place / "said").open("w") as said:
                self.processes.append(
                    subprocess.Popen(command, cwd=place, env=environment, stdout=said, stderr=said, text=True)
                )

    def wait(self) -> tuple[list[int], list[str]]:
        """Exit codes, and what each has said."""
        try:
            codes = [process.wait(240) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return codes, [(place / "said").read_text() for place in self.folders]

    def run(self, *words: object, **options: object) -> tuple[list[int], list[str]]:
        self.start(*words, **options)  # type: ignore[arg-type]
        return self.wait()
