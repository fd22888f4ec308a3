"""Which network `ssv2rt.load` takes: an engine, or the checkpoint of a run in PyTorch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ssv2rt.core.cores import cores
from ssv2rt.core.errors import UsageError
from ssv2rt.core.hardware import choose_device
from ssv2rt.core.recipes import Clip, Data
from ssv2rt.core.run_folders import RUNS, Run, find_run, is_run
from ssv2rt.core.worker_pool import Worker, WorkerSettings
from ssv2rt.engines.backends.registry import load_runner
from ssv2rt.engines.base import Runner
from ssv2rt.engines.bundle import INFO, Bundle, open_bundle, sha256
from ssv2rt.engines.find import engines_of, find_engine
from ssv2rt.engines.in_pytorch import PyTorchRunner, bundle_in_memory
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.load_weights import read_weights
from ssv2rt.models.weights import load_trained
from ssv2rt.published.catalog import PUBLISHED, Published, class_names
from ssv2rt.published.download import fetch
from ssv2rt.published.load import load_network
from ssv2rt.scoring.devices import devices_for
from ssv2rt.scoring.row import Row
from ssv2rt.scoring.segments import Windows
from ssv2rt.scoring.video_sources import Video
from ssv2rt.scoring.worker import scorer_of

logger = logging.getLogger(__name__)

PYTORCH = "pytorch"


@dataclass(frozen=True)
class Network:
    """A network that has not been loaded yet."""

    name: str
    bundle: Bundle
    """The engine; for a network in PyTorch, facts without files."""
    model: ClipModel | None = None
    """The network in PyTorch, if there is no engine. `name` names it in worker processes too."""

    def runner(self, device: torch.device | None = None) -> Runner:
        """Loads the engine on PyTorch's current GPU, or puts the network in PyTorch on a device, by default the first GPU."""
        if self.model is None:
            return load_runner(self.bundle)
        return PyTorchRunner(self.model, device or choose_device(), torch.float32)

    def workers(
        self, count: int, *, clip: Clip, data: Data, columns: Sequence[str], windows: Windows | None
    ) -> list[WorkerSettings]:
        """Settings of worker processes, which load the network themselves, on one GPU after the other."""
        devices = devices_for(self.bundle.info, None)
        options: dict[str, Any] = {
            "top_k": 1,
            "clip": clip,
            "data": data.model_copy(update={"threads": data.threads or max(1, cores() // count)}),
            "extra_columns": columns,
            "windows": windows,
        }
        if self.model is None:
            factory = "ssv2rt.scoring.worker:make_scorer"
            options |= {"bundle": str(self.bundle.path), "digest": self.bundle.digest}
        else:
            factory = "ssv2rt.api.network:make_scorer_in_pytorch"
            options["source"] = self.name
        return [
            WorkerSettings(factory, options | {"device": devices[number % len(devices)]}) for number in range(count)
        ]


def network_of(source: str | Path | None, engine: str | None = None) -> Network:
    """Finds a network. See `ssv2rt.load`.

    Raises:
        UserError: there is none, or it cannot be read.
        UsageError: an engine's folder together with the name of an engine.
    """
    if source is not None and (Path(source) / INFO).is_file():
        if engine:
            raise UsageError(f"'{source}' is an engine itself; leave out engine = {engine!r}")
        bundle = open_bundle(Path(source))
        return Network(str(source), bundle)
    if source in PUBLISHED and not is_run(Path(source)) and not is_run(RUNS / source):
        if engine not in (None, PYTORCH):
            raise UsageError(f"'{source}' has no engine {engine!r}: import it first, with `ssv2rt import {source}`")
        return _published(PUBLISHED[str(source)])
    run = find_run(None if source is None else str(source), for_engine=True)
    if engine == PYTORCH:
        return _in_pytorch(run)
    if engine is None and run.checkpoints.is_dir():
        found = engines_of(run)
        if all(other.cannot_run for other in found):
            for other in found:
                logger.warning(f"not taking the engine '{other.name}', since it {other.cannot_run}")
            return _in_pytorch(run)
    return Network(str(run.path), find_engine(run, engine))


def _in_pytorch(run: Run) -> Network:
    trained = load_trained(run)
    bundle = bundle_in_memory(
        trained.model,
        trained.recipe.model.name,
        labels=trained.labels,
        clip=trained.recipe.clip,
        device=choose_device(),
        precision="fp32",
        weights_sha256=sha256(trained.path),
    )
    return Network(str(run.path), bundle, trained.model)


def _published(entry: Published) -> Network:
    """A published network, whose weights are downloaded at their first use."""
    path, digest = fetch(entry)
    model = load_network(entry, read_weights(str(path))[0], entry.name)
    bundle = bundle_in_memory(
        model,
        entry.model.name,
        labels=class_names(entry.classes),
        clip=entry.clip,
        device=choose_device(),
        precision="fp32",
        weights_sha256=digest,
    )
    return Network(entry.name, bundle, model.eval())


def make_scorer_in_pytorch(*, source: str, device: int | None = None, **options: Any) -> Worker[Video, Row]:
    """Makes the scorer of a worker process from a network in PyTorch. See `ssv2rt.scoring.worker.make_scorer`.

    Raises:
        UserError: the network cannot be read.
    """
    if device is not None:
        torch.cuda.set_device(device)
    network = network_of(source, PYTORCH)
    where = None if device is None else torch.device("cuda", device)
    return scorer_of(network.bundle, network.runner(where), device=where, **options)
