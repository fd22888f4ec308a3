"""Train 3D-convolution action models on Something-Something V2 and score folders of videos with them.

What `__all__` names is public, here and in the objects that it gives; everything else may change at any time. A name is
imported at its first use: `import ssv2rt` alone loads no other package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ssv2rt.api.jobs import EvaluateResult as EvaluateResult
    from ssv2rt.api.jobs import TrainResult as TrainResult
    from ssv2rt.api.jobs import build_engine as build_engine
    from ssv2rt.api.jobs import evaluate as evaluate
    from ssv2rt.api.jobs import import_weights as import_weights
    from ssv2rt.api.jobs import open_dataset as open_dataset
    from ssv2rt.api.jobs import train as train
    from ssv2rt.api.model import Model as Model
    from ssv2rt.api.model import load as load
    from ssv2rt.api.results import Prediction as Prediction
    from ssv2rt.api.results import Window as Window
    from ssv2rt.core.errors import UsageError as UsageError
    from ssv2rt.core.errors import UserError as UserError
    from ssv2rt.dataset.manifest import Manifest as Manifest
    from ssv2rt.dataset.manifest import Split as Split
    from ssv2rt.engines.bundle import Bundle as Bundle
    from ssv2rt.training.evaluate import Evaluation as Evaluation

_PUBLIC = {
    "Bundle": "ssv2rt.engines.bundle",
    "EvaluateResult": "ssv2rt.api.jobs",
    "Evaluation": "ssv2rt.training.evaluate",
    "Manifest": "ssv2rt.dataset.manifest",
    "Model": "ssv2rt.api.model",
    "Prediction": "ssv2rt.api.results",
    "Split": "ssv2rt.dataset.manifest",
    "TrainResult": "ssv2rt.api.jobs",
    "UsageError": "ssv2rt.core.errors",
    "UserError": "ssv2rt.core.errors",
    "Window": "ssv2rt.api.results",
    "build_engine": "ssv2rt.api.jobs",
    "evaluate": "ssv2rt.api.jobs",
    "import_weights": "ssv2rt.api.jobs",
    "load": "ssv2rt.api.model",
    "open_dataset": "ssv2rt.api.jobs",
    "train": "ssv2rt.api.jobs",
}
"""The modules that define the public names."""

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'ssv2rt' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
