"""A PyTorch network that takes the place of an engine, to benchmark scoring on a GPU for which no engine can be built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ssv2rt.core.hardware import gpu_architecture, native_bf16
from ssv2rt.core.recipes import BatchProfile, Clip, Data, Model
from ssv2rt.core.worker_pool import Worker
from ssv2rt.engines.base import Outputs, Runner
from ssv2rt.engines.bundle import Bundle, BundleInfo
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


class PyTorchRunner(Runner):
    """Runs a network in channels_last_3d and half precision. Like an engine, it returns logits on the CPU."""

    in_flight = 2

    def __init__(self, network: ClipModel, device: torch.device) -> None:
        set_deterministic(False)
        self._network, self._device = network.channels_last().to(device), device
        self._dtype = torch.bfloat16 if native_bf16(device) or device.type == "cpu" else torch.float16

    def start(self, clips: torch.Tensor) -> Callable[[], Outputs]:
        with torch.inference_mode(), torch.autocast(self._device.type, self._dtype):
            logits = self._network(clips.to(self._device))
        return lambda: Outputs(logits.float().cpu(), None)


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
    predictor = Predictor(bundle, top_k=5, device=device, runner=PyTorchRunner(random_network(model), device))
    return worker_of(Scorer(predictor, data=Data(), clip=clip, trusted=trusted))


def bundle_without_engine(model: Model, clip: Clip, batch: int, device: torch.device) -> Bundle:
    """The engine facts that scoring needs, for a network that takes the place of an engine. No file exists on disk."""
    info = BundleInfo(
        backend="PyTorch in place of an engine",
        backend_version=torch.__version__,
        precision="bf16",
        target=gpu_architecture(device) if device.type == "cuda" else "cpu",
        model=model.name,
        input="frames",
        input_shape=("batch", clip.frames, clip.size, clip.size, 3),
        batch=BatchProfile(min=1, best=batch, max=batch),
        clip=clip,
        labels=tuple(str(number) for number in range(CLASSES)),
        weights_sha256="",
        files={},
        onnx_file="",
        engine_file="",
        rebuild="",
    )
    return Bundle(Path(), info)
