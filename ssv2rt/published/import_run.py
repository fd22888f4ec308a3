"""Makes a run of published weights: what the other commands need to use them like weights of their own training."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ssv2rt.core.atomic_files import flush_to_disk, remove_tree, replace_link, scratch_folder, write_json, write_text
from ssv2rt.core.errors import UsageError, UserError, one_line, os_errors_as_user_errors
from ssv2rt.core.recipe_files import dump_recipe
from ssv2rt.core.recipes import Data, Recipe
from ssv2rt.core.run_folders import RUNS, Run, check_run_name, create_run
from ssv2rt.dataset.labels import read_class_names
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.load_weights import Weights, read_weights
from ssv2rt.models.weights import WEIGHTS, is_checkpoint, load_checkpoint, save_weights
from ssv2rt.published.catalog import PUBLISHED, Published, class_names, published
from ssv2rt.published.download import check_hash, check_is_weights, fetch, record_hash, sha256_of
from ssv2rt.published.load import count_classes, entry_of, load_network, of_these_classes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What a publisher says of a file of weights."""

    name: str
    """In the catalog."""
    url: str
    publisher: str
    about: str
    paper: str
    license: str
    data_set: str
    top1: float
    top5: float | None
    views: tuple[int, int]
    note: str


@dataclass(frozen=True, kw_only=True)
class RunSource:
    """Where the weights of a run are from. Its fields are the keys of source.json."""

    file: str
    """Name of the file."""
    sha256: str
    imported: str
    """Date, such as 2026-01-31."""
    network: str
    """Name in the catalog of the network and its clip settings; of a checkpoint of this package, its model."""
    published: Publication | None
    """None if the file is not known to be the published one."""


def read_source(run: Run) -> RunSource | None:
    """Where the weights of an imported run are from; None for a run that was trained here.

    Raises:
        UserError: source.json is damaged.
    """
    if not run.source_file.is_file():
        return None
    try:
        return TypeAdapter(RunSource).validate_json(run.source_file.read_bytes())
    except ValidationError as error:
        raise UserError(
            f"'{run.source_file}' does not say where the weights are from ({one_line(error)}); import them again"
        ) from None


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """The options of `import`, under the names that the command has them.

    Raises:
        UsageError: a name is unknown, or an option does not go with another.
    """

    source: str
    network: str | None = None
    name: str = ""
    labels: Path | None = None

    def __post_init__(self) -> None:
        if self.name:
            check_run_name(self.name)
        if self.network:
            published(self.network)
        if self.is_file:
            return
        if self.network:
            raise UsageError(
                f"--as {self.network} is for a file, and '{self.source}' is none; give the file, or leave --as out"
            )
        path = Path(self.source)
        if self.source and (path.suffix or len(path.parts) != 1 or os.path.exists(path)):
            known = next((entry for entry in PUBLISHED.values() if entry.file == path.name), None)
            where = f"get it from {known.url}" if known else f"give a file of weights, or one of {', '.join(PUBLISHED)}"
            raise UsageError(f"'{self.source}': {'is a folder' if os.path.isdir(path) else 'no such file'}; {where}")
        published(self.source)

    @property
    def is_file(self) -> bool:
        return os.path.isfile(self.source)


def import_as_requested(request: ImportRequest) -> tuple[Run, RunSource]:
    """Makes the run that a request asks for. It becomes the newest one.

    Raises:
        UsageError: the network of a file cannot be told.
        UserError: the run exists; the weights cannot be downloaded or read, or are not those of the network; they have other
            classes; or nothing can be written. No run is left then.
    """
    if request.name and os.path.lexists(RUNS / request.name):
        raise UserError(f"run '{RUNS / request.name}' exists; choose another --name, or remove it")
    own_labels = read_class_names(request.labels) if request.labels else None
    if request.is_file and not request.network and is_checkpoint(Path(request.source)):
        return _import_checkpoint(Path(request.source), request, own_labels)
    entry, path, digest, is_published = _find(request)
    weights = read_weights(str(path))[0]
    if not request.network:
        entry = of_these_classes(entry, weights, request.source) if entry else entry_of(weights, request.source)
    assert entry is not None
    labels = _labels(entry, weights, request, own_labels)
    model = load_network(entry, weights, request.source)
    is_published = is_published and own_labels is None
    if is_published:
        record_hash(entry, digest)
    else:
        logger.info(f"'{request.source}' is not known to be the published file, so no published accuracy is noted")
    source = _source(path, digest, entry.name, entry if is_published else None)
    return make_run(model, Recipe(clip=entry.clip, model=entry.model), labels, source, request.name), source


def _import_checkpoint(path: Path, request: ImportRequest, own: Sequence[str] | None) -> tuple[Run, RunSource]:
    """Makes a run of a checkpoint of this package, whose header has labels, network and clips."""
    trained = load_checkpoint(path)
    labels = _checked_labels(own, len(trained.labels), request) if own is not None else trained.labels
    source = _source(path, sha256_of(path), trained.recipe.model.name, None)
    recipe = trained.recipe.model_copy(update={"data": Data()})  # whose data need not be on this machine
    return make_run(trained.model, recipe, labels, source, request.name), source


def _source(path: Path, digest: str, network: str, entry: Published | None) -> RunSource:
    """What source.json says: today's date, and what `entry` says if the file is the published one."""
    publication = None
    if entry:
        facts = {field.name: getattr(entry, field.name) for field in fields(Publication) if field.name != "views"}
        publication = Publication(views=entry.clip.views, **facts)
    return RunSource(
        file=path.name, sha256=digest, imported=time.strftime("%Y-%m-%d"), network=network, published=publication
    )


def make_run(model: ClipModel, recipe: Recipe, labels: tuple[str, ...], source: RunSource, name: str = "") -> Run:
    """Writes a run of weights that were not trained here, all of it or nothing, and makes it the newest.

    Args:
        model: its weights are saved.
        recipe: with the network and the clips of the model.
        labels: class names, in order.
        source: where the weights are from.
        name: of the run; by default that of the network in the catalog, and the time.

    Raises:
        UserError: the run exists, or cannot be written.
    """
    with (
        os_errors_as_user_errors(f"cannot write a run in '{RUNS}'", "mend that, or use another working directory"),
        scratch_folder(RUNS / (name or source.network)) as scratch,
    ):
        draft = Run(scratch)
        folder = draft.checkpoints / "epoch-0000"
        folder.mkdir(parents=True)
        save_weights(folder / WEIGHTS, model, labels=labels, recipe=recipe, epoch=0)
        for link in ("best", "last"):
            replace_link(draft.checkpoints / link, folder.name)
        write_text(draft.recipe_file, dump_recipe(recipe))
        write_json(draft.source_file, asdict(source))
        for file in scratch.rglob("*"):
            flush_to_disk(file)
        run = create_run(source.network, name)
        try:
            os.replace(scratch, run.path)  # over the empty folder
            run.make_latest()
        except BaseException:
            remove_tree(run.path)
            raise
    return run


def _find(request: ImportRequest) -> tuple[Published | None, Path, str, bool]:
    """The entry of a request, its file with its SHA-256, and whether it is the published file.

    The entry is None if only the weights can tell it.
    """
    if not request.is_file:
        entry = published(request.source)
        return entry, *fetch(entry), True
    path = Path(request.source)
    check_is_weights(path, request.source)
    if request.network:
        digest, entry = sha256_of(path), published(request.network)
        return entry, path, digest, bool(entry.sha256) and digest.startswith(entry.sha256)
    by_name = next((entry for entry in PUBLISHED.values() if entry.file == path.name), None)
    if by_name:
        return by_name, path, check_hash(path, by_name), True
    digest = sha256_of(path)
    by_hash = next((entry for entry in PUBLISHED.values() if entry.sha256 and digest.startswith(entry.sha256)), None)
    return by_hash, path, digest, by_hash is not None


def _labels(entry: Published, weights: Weights, request: ImportRequest, own: Sequence[str] | None) -> tuple[str, ...]:
    """The class names of the weights: the user's, or those of the data set that the entry was trained on."""
    classes = count_classes(weights, request.source)
    if own is not None:
        return _checked_labels(own, classes, request)
    names = class_names(entry.classes)
    if len(names) != classes:
        raise UserError(
            f"'{request.source}' has {classes} classes, and {entry.data_set} has {len(names)}; give the names of its classes, "
            "in order, with --labels FILE"
        )
    return names


def _checked_labels(own: Sequence[str], classes: int, request: ImportRequest) -> tuple[str, ...]:
    if len(own) != classes:
        raise UserError(
            f"--labels {request.labels} names {len(own)} classes, and '{request.source}' has {classes}; give the names of its "
            "classes, in order"
        )
    return tuple(own)
