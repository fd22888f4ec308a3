"""What a worker process makes first: the engine and the decoders that score its videos."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssv2rt.core.errors import UserError
from ssv2rt.core.worker_pool import Worker
from ssv2rt.scoring.row import Row
from ssv2rt.scoring.supervisor import Answer, Task
from ssv2rt.scoring.video_sources import Video

if TYPE_CHECKING:
    import torch

    from ssv2rt.core.recipes import Clip, Data
    from ssv2rt.engines.base import Runner
    from ssv2rt.engines.bundle import Bundle
    from ssv2rt.pipelines.decoder_trust import Decision
    from ssv2rt.scoring.predictor import Predictor
    from ssv2rt.scoring.scorer import Scorer
    from ssv2rt.scoring.segments import Windows
    from ssv2rt.scoring.window_scorer import WindowScorer


def make_scorer(
    *,
    bundle: str,
    top_k: int,
    clip: Clip,
    data: Data,
    extra_columns: Sequence[str] = (),
    windows: Windows | None = None,
    device: int | None = None,
    digest: str = "",
    trusted: Mapping[str, Decision] | None = None,
) -> Worker[Video, Row]:
    """Makes a `Scorer`, or a `WindowScorer` if there are sliding windows.

    Args:
        bundle: path of the engine bundle.
        top_k: see `Predictor`.
        clip: see `Scorer`.
        data: see `Scorer`.
        extra_columns: see `Predictor`.
        windows: see `WindowScorer`.
        device: index of the GPU; None for an engine built for a CPU.
        digest: `Bundle.digest` that the bundle must have; empty for any.
        trusted: see `Scorer`.

    Raises:
        UserError: the bundle does not fit this machine, or is not the one that is expected.
    """
    import torch

    from ssv2rt.engines.backends.registry import load_runner

    opened = open_same_bundle(Path(bundle), digest)
    if device is not None and torch.cuda.is_available():  # otherwise loading the engine reports what is missing
        torch.cuda.set_device(device)
    gpu = torch.device("cuda", device) if device is not None else None
    runner = load_runner(opened)
    open_same_bundle(Path(bundle), opened.digest)  # nobody replaced it while it was loaded
    return scorer_of(
        opened,
        runner,
        top_k=top_k,
        clip=clip,
        data=data,
        extra_columns=extra_columns,
        windows=windows,
        device=gpu,
        trusted=trusted,
    )


def scorer_of(
    bundle: Bundle,
    runner: Runner,
    *,
    top_k: int,
    clip: Clip,
    data: Data,
    extra_columns: Sequence[str] = (),
    windows: Windows | None = None,
    device: torch.device | None = None,
    trusted: Mapping[str, Decision] | None = None,
) -> Worker[Video, Row]:
    """What a process does with a loaded engine. The arguments are those of `make_scorer`."""
    from ssv2rt.scoring.predictor import Predictor
    from ssv2rt.scoring.scorer import Scorer
    from ssv2rt.scoring.window_scorer import WindowScorer

    predictor = Predictor(bundle, top_k=top_k, extra_columns=extra_columns, device=device, runner=runner)
    if windows:
        usual = WindowScorer(predictor, data=data, clip=clip, windows=windows)
        careful = WindowScorer(_WindowByWindow(predictor), data=data, clip=clip, windows=windows)  # type: ignore[arg-type]

        def score(batches: Iterable[list[Task]]) -> Iterator[Answer]:
            for first in (batches := iter(batches)):
                suspect = any(video.by_pyav for _, video in first)
                yield from (careful if suspect else usual).score(chain([first], batches))

        return Worker(score, usual.videos, usual.batches_ahead)
    return worker_of(Scorer(predictor, data=data, clip=clip, trusted=trusted))


class _WindowByWindow:
    """A `Predictor` for a `WindowScorer` that is to answer each window at once, so that a crash loses few of them."""

    batch = in_flight = 1

    def __init__(self, predictor: Predictor) -> None:
        self.device, self.start = predictor.device, predictor.start


def open_same_bundle(path: Path, digest: str) -> Bundle:
    """Opens a bundle again.

    Raises:
        UserError: it has another digest than expected, unless that is empty; or as `open_bundle`.
    """
    from ssv2rt.engines.bundle import open_bundle

    opened = open_bundle(path)
    if digest and opened.digest != digest:
        raise UserError(
            f"the engine in '{path}' was replaced while it was in use; put the old one back and go on with --resume, "
            f"or score anew with --overwrite"
        )
    return opened


def worker_of(scorer: Scorer | WindowScorer) -> Worker[Video, Row]:
    """What a process does with a scorer. A `Scorer` learns which kinds of videos DALI can decode."""
    decisions: Any = getattr(scorer, "trusted", None)
    learned = (lambda: {"trusted": dict(decisions)} if decisions else {}) if decisions is not None else dict
    return Worker(scorer.score, scorer.videos, scorer.batches_ahead, learned)
