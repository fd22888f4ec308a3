"""A PyTorch network that takes the place of an engine, to benchmark scoring on a GPU for which no engine can be built."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ssv2rt.core.hardware import native_bf16
from ssv2rt.core.recipes import Clip, Data, Model
from ssv2rt.core.worker_pool import Worker
from ssv2rt.engines.bundle import Bundle
from ssv2rt.engines.in_pytorch import PyTorchRunner, bundle_in_memory
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.registry import build_model
from ssv2rt.pipelines.decoder_trust import Decision
from ssv2rt.scoring.predictor import Predictor
from ssv2rt.scoring.row import Row
from ssv2rt.scoring.scorer import Scorer
from ssv2rt.scoring.video_sources import Video
from ssv2rt.scoring.worker import worker_of
from ssv2rt.training.determinism import set_deterministic

CLASSES = 174


def random_network(model: Model) -> ClipModel:
    """A network with random weights, the same in every process."""
    torch.manual_seed(0)
    return build_model(model, CLASSES).eval()


def make_scorer(
    *, model: Model, clip: Clip, batch: int, trusted: Mapping[str, Decision] | None = None
) -> Worker[Video, Row]:
    """Builds the scorer of a worker process, in place of `ssv2rt.scoring.worker.make_scorer`."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    bundle = bundle_without_engine(model, clip, batch, device)
    predictor = Predictor(bundle, top_k=5, device=device, runner=runner_of(random_network(model), device))
    return worker_of(Scorer(predictor, data=Data(), clip=clip, trusted=trusted))


def runner_of(network: ClipModel, device: torch.device) -> PyTorchRunner:
    """The network in half precision."""
    set_deterministic(False)
    half = torch.bfloat16 if native_bf16(device) or device.type == "cpu" else torch.float16
    return PyTorchRunner(network, device, half)


def bundle_without_engine(model: Model, clip: Clip, batch: int, device: torch.device) -> Bundle:
    """The engine facts that scoring needs, for a network that takes the place of an engine. No file exists on disk."""
    labels = [str(number) for number in range(CLASSES)]
    network = random_network(model)
    return bundle_in_memory(network, model.name, labels=labels, clip=clip, device=device, precision="bf16", batch=batch)
