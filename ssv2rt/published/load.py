"""Published weights in a network of this package, and training that starts from them.

Letters: K classes, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ssv2rt.core.errors import UsageError, UserError, suggest
from ssv2rt.core.run_folders import RUNS, is_run, known_runs
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.load_weights import Weights, read_weights
from ssv2rt.models.pretrained import How, LoadReport, copy_weights, initialize_from
from ssv2rt.models.published_weights import load_published
from ssv2rt.models.registry import build_model
from ssv2rt.published.catalog import PUBLISHED, WEIGHTS, Published, class_names
from ssv2rt.published.download import fetch


def load_network(entry: Published, weights: Weights, source: str) -> ClipModel:
    """The network of published weights, as published: with its normalization, in evaluation mode.

    Args:
        entry: whose network it is.
        weights: under the names of the file.
        source: where they are from, for messages.

    Raises:
        UserError: the weights are not those of the network, to the last one.
    """
    model = build_model(entry.model, count_classes(weights, source))
    load_published(model, weights, source)
    bad = next((name for name, weight in weights.items() if not weight.isfinite().all()), None)
    if bad:
        raise UserError(f"'{source}': {bad} holds values that are not finite; get the file again")
    mean, std = (255 * torch.tensor(color).view(1, 3, 1, 1, 1) for color in (entry.mean, entry.std))
    model.normalise.mean.copy_(mean)
    model.normalise.scale.copy_(1 / std)
    if entry.bgr:
        _reverse_input_channels(model)
    return model.eval()


def _reverse_input_channels(model: ClipModel) -> None:
    """Lets a network that was trained with blue, green, red take red, green, blue, by its first convolutions."""
    mean, scale = model.normalise.mean.flatten(), model.normalise.scale.flatten()
    assert len(set(mean.tolist())) == len(set(scale.tolist())) == 1, "normalization would be reversed, too"
    with torch.no_grad():
        for module in model.backbone.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)) and module.in_channels == 3:
                module.weight.copy_(module.weight.flip(1))


def count_classes(weights: Weights, source: str) -> int:
    """K, from the classifier: the only matrix (K, D) among the weights of a convolutional network.

    Raises:
        UserError: there is none, or several.
    """
    matrices = {name: weight for name, weight in weights.items() if weight.ndim == 2}
    if len(matrices) != 1:
        what = f"has {', '.join(list(matrices)[:3])}" if matrices else "has no classifier"
        raise UserError(f"'{source}' {what}, and is none of the networks in `ssv2rt models`")
    return len(next(iter(matrices.values())))


def entry_of(weights: Weights, source: str) -> Published:
    """The catalog's entry whose network has these weights, by their names and shapes.

    Raises:
        UserError: there is none.
        UsageError: there are several.
    """
    fitting = _fitting(weights, source)
    if not fitting:
        raise UserError(
            f"'{source}' is of none of the networks that can be imported; to see what differs, name one with --as: "
            f"{', '.join(PUBLISHED)}"
        )
    if len(fitting) > 1:
        names = ", ".join(entry.name for entry in fitting)
        raise UsageError(f"'{source}' fits {names}, which read clips in different ways; say which it is with --as")
    return fitting[0]


def _fitting(weights: Weights, source: str) -> list[Published]:
    classes = count_classes(weights, source)
    return [entry for entry in PUBLISHED.values() if _fits(entry, weights, classes)]


def _fits(entry: Published, weights: Weights, classes: int) -> bool:
    try:
        with torch.device("meta"):  # nothing is allocated or copied
            load_published(build_model(entry.model, classes), weights, entry.name)
    except UserError:
        return False
    return True


def start_from(model: ClipModel, source: str, *, how: How = "mean", labels: Sequence[str] | None = None) -> LoadReport:
    """Like `initialize_from`, which it calls for files and runs; a published name is downloaded.

    Of a video network, the classifier is taken over by the names of its classes; one for images is inflated.

    Raises:
        UsageError: there is no such file, run or published network.
        UserError: the download fails; or as `initialize_from`.
    """
    path = Path(source)
    if path.is_file():
        if (entry := _published_file(path)) is None:
            return initialize_from(model, source, how=how, labels=labels)
    elif entry := PUBLISHED.get(source):
        path, _ = fetch(entry)
    if entry:
        network = load_network(entry, read_weights(str(path))[0], source)
        is_original = path.name == entry.file
        names = class_names(entry.classes) if is_original else None
        return copy_weights(model, network.state_dict(), source, how=how, labels=labels, theirs=names)
    if source in WEIGHTS:
        return initialize_from(model, str(fetch(WEIGHTS[source])[0]), how=how, labels=labels)
    if not path.exists() and not path.suffix and len(path.parts) == 1 and not is_run(RUNS / source):
        raise UsageError(
            f"no file, no run and no published network '{source}'{suggest(source, [*WEIGHTS, *known_runs()])}"
        )
    return initialize_from(model, source, how=how, labels=labels)


def _published_file(path: Path) -> Published | None:
    """The entry of a file, if it has the layout of published weights that are not those of a 2D network or of a run."""
    if path.suffix == ".safetensors":
        return None
    weights, _ = read_weights(str(path))
    if sum(weight.ndim == 2 for weight in weights.values()) != 1:
        return None
    fitting = _fitting(weights, str(path))
    return next((entry for entry in fitting if entry.file == path.name), fitting[0] if fitting else None)
