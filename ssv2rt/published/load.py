"""Published weights in a network of this package, and training that starts from them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from ssv2rt.core.errors import UsageError, UserError, suggest
from ssv2rt.core.recipes import Model
from ssv2rt.core.run_folders import RUNS, is_run, known_runs
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.layouts import to_model_names
from ssv2rt.models.load_weights import Weights, read_weights
from ssv2rt.models.pretrained import How, LoadReport, copy_weights, initialize_from
from ssv2rt.models.published_weights import load_published
from ssv2rt.models.registry import build_model
from ssv2rt.published.catalog import IMAGENET, PUBLISHED, Published, WeightsFile, class_names
from ssv2rt.published.download import downloaded, fetch

logger = logging.getLogger(__name__)


def load_network(entry: Published, weights: Weights, source: str) -> ClipModel:
    """The network of published weights, with the publisher's normalization, in evaluation mode.

    Args:
        entry: whose network it is.
        weights: as `read_weights` gives them.
        source: where they are from, for messages.

    Raises:
        UserError: the weights are not those of the network, to the last one.
    """
    model = build_model(entry.model, count_classes(weights, source))
    load_published(model, _in_rgb(entry, weights, source), source)
    return model.eval()


def _in_rgb(entry: Published, weights: Weights, source: str) -> Weights:
    """Weights that take red, green, blue, of a network that was trained with blue, green, red.

    That is exact, since the normalization of these networks is the same for all colors. Weights with other classes, and
    those that this package has saved, are not the publisher's own, and stay as they are.
    """
    is_own = to_model_names(weights, source).layout.colors is None
    if not entry.bgr or is_own or count_classes(weights, source) != len(class_names(entry.classes)):
        return weights
    logger.info(f"'{entry.name}' was trained on blue, green, red; its first convolutions are reversed to take RGB")
    return {
        name: weight.flip(1) if weight.ndim >= 4 and weight.shape[1] == 3 else weight
        for name, weight in weights.items()
    }


def count_classes(weights: Weights, source: str) -> int:
    """The number of classes of the classifier.

    Raises:
        UserError: there is no classifier, or the weights are of no known layout.
    """
    bias = to_model_names(weights, source).weights.get("head.bias")
    if bias is None or not bias.ndim:
        raise UserError(
            f"'{source}' has no classifier, and `import` needs one; start from it with `ssv2rt train --init`"
        )
    return len(bias)


def of_these_classes(entry: Published, weights: Weights, source: str) -> Published:
    """Of the entries whose files have the same name at their publisher's, the one with the classes of the weights.

    PyTorchVideo has the same names for Kinetics-400 and for Something-Something V2. If there is none, it is `entry`.
    """
    namesakes = [other for other in PUBLISHED.values() if other.published_as == entry.published_as]
    if len(namesakes) == 1:
        return entry
    classes = count_classes(weights, source)
    return next((other for other in namesakes if len(class_names(other.classes)) == classes), entry)


def entry_of(weights: Weights, source: str) -> Published:
    """The catalog's entry whose network has these weights, by their names and shapes.

    Raises:
        UserError: there is none.
        UsageError: there are several.
    """
    classes = count_classes(weights, source)
    blank = {name: weight.new_zeros(()).expand(weight.shape) for name, weight in weights.items()}
    fits = {model for model in {entry.model for entry in PUBLISHED.values()} if _fits(model, blank, classes)}
    fitting = [entry for entry in PUBLISHED.values() if entry.model in fits]
    fitting = [entry for entry in fitting if len(class_names(entry.classes)) == classes] or fitting
    if not fitting:
        raise UserError(
            f"'{source}' is of none of the networks that can be imported; to see what differs, name one with --as: "
            f"{', '.join(PUBLISHED)}"
        )
    if len(fitting) > 1:
        names = ", ".join(entry.name for entry in fitting)
        raise UsageError(f"'{source}' fits {names}, which read clips in different ways; say which it is with --as")
    return fitting[0]


def _fits(network: Model, weights: Weights, classes: int) -> bool:
    try:
        with torch.device("meta"):  # nothing is allocated or copied
            load_published(build_model(network, classes), weights, network.name)
    except UserError:
        return False
    return True


def to_be_downloaded(source: str) -> WeightsFile | None:
    """The published weights that `start_from` would have to download; None if it would not."""
    weights = PUBLISHED.get(source) or IMAGENET.get(source)
    return weights if weights and not Path(source).is_file() and not downloaded(weights) else None


def start_from(model: ClipModel, source: str, *, how: How = "mean", labels: Sequence[str] | None = None) -> LoadReport:
    """Like `initialize_from`, and takes names of published weights, too, which it downloads. It knows their classes.

    Raises:
        UsageError: there is no such file, run or published network.
        UserError: the download fails; or as `initialize_from`.
    """
    path = Path(source)
    by_name = PUBLISHED.get(source) or IMAGENET.get(source)
    if by_name and not path.is_file():
        path, _ = fetch(by_name)
    elif not path.exists() and not path.suffix and len(path.parts) == 1 and not is_run(RUNS / source):
        raise UsageError(
            f"no file, no run and no published network '{source}'{suggest(source, [*PUBLISHED, *IMAGENET, *known_runs()])}"
        )
    entry = next((entry for entry in PUBLISHED.values() if entry.file == path.name), None)
    if not entry:
        return initialize_from(model, str(path), how=how, labels=labels)
    weights = read_weights(str(path))[0]
    entry = of_these_classes(entry, weights, source)
    weights = _in_rgb(entry, weights, source)
    return copy_weights(model, weights, source, how=how, labels=labels, theirs=class_names(entry.classes))
