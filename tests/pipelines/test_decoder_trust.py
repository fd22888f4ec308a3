"""DALI's decoder is trusted with what it was seen to decode right, and with nothing else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssv2rt.core.recipes import Clip, Data, Synthetic
from ssv2rt.dataset.synthetic import synthesize
from ssv2rt.pipelines.decoder_choice import make_trust
from ssv2rt.pipelines.decoder_trust import MOST_CLIPS, Decision, DecoderTrust, judge
from ssv2rt.pipelines.hand_over import Counting, HandOver, hand_over, read_coded
from ssv2rt.pipelines.loaded_clip import Decoder, GraphFailed
from ssv2rt.pipelines.loader import ClipLoader
from ssv2rt.pipelines.request_source import evaluation_request
from ssv2rt.pipelines.requests import ClipRequest
from ssv2rt.video.decode import decode_clips
from ssv2rt.video.probe import probe
from tests.video.clips import hidden_vp9, webm

CLIP = Clip(frames=6, size=64, center_crop=1.0)
CPU = torch.device("cpu")
DALI = Data(decoder="dali", threads=2)
HIDDEN = "vp9 yuv420p of odd width, hidden"


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Clips coded as SSv2's are, of one kind."""
    folder = tmp_path_factory.mktemp("trust") / "set"
    synthesize(folder, Synthetic(clips=30, width=427, height=240, frames=(24, 30)), key_frames="first", workers=1)
    return sorted((folder / "videos").iterdir())[:10]


def wanted(path: Path) -> ClipRequest:
    return evaluation_request(path.name, path, probe(path), clip=CLIP)


def handed(path: Path) -> HandOver:
    return hand_over(read_coded(path, codec="vp9"), wanted(path).frames)


def trust(
    change: Callable[[Any, HandOver, np.ndarray], np.ndarray], told: list[str], decoder: Decoder = "mixed"
) -> tuple[DecoderTrust, Counter[str]]:
    """A trust in DALI's CPU decoder, which stands for another one, and how often that decoded."""
    from ssv2rt.pipelines.dali_graph import FrameGraph

    calls: Counter[str] = Counter()

    class Double:
        def __init__(self) -> None:
            self._graph = FrameGraph("cpu")

        def decode(self, handed: HandOver, positions: np.ndarray) -> np.ndarray:
            calls["decoded"] += 1
            return change(self._graph, handed, positions)

    return DecoderTrust(decoder, Double, tell=told.append), calls


def as_shown(graph: Any, handed: HandOver, positions: np.ndarray) -> np.ndarray:
    """Of a decoder that counts shown pictures."""
    return graph.decode(handed, positions)


def as_decoded(graph: Any, handed: HandOver, positions: np.ndarray) -> np.ndarray:
    """Of a decoder that counts decoded pictures: what it gives at a position is what is shown there, or after it."""
    shown = np.searchsorted(handed.decoded, positions)
    return graph.decode(handed, np.minimum(handed.shown[np.minimum(shown, len(shown) - 1)], handed.shown[-1]))


@pytest.mark.parametrize(("change", "counting"), [(as_shown, "shown"), (as_decoded, "decoded")])
def test_the_way_of_counting_is_found_out(videos: list[Path], change: Any, counting: Counting) -> None:
    told: list[str] = []
    made, calls = trust(change, told)
    decisions = [made.decide(path, handed(path)) for path in videos]
    assert {decision.counting for decision in decisions} == {counting}
    assert made.compared == 2 and calls["decoded"] == (2 if counting == "decoded" else 3)  # of ten clips
    assert str(made.decisions[HIDDEN]) == (
        "as by PyAV in 2 clips, without 1 columns at the left and 0 at the right"  # NVDEC's odd widths lose one
    )
    assert not told


def test_one_frame_too_late_is_found_out(videos: list[Path]) -> None:
    told: list[str] = []
    made, calls = trust(lambda graph, handed, positions: graph.decode(handed, np.maximum(positions, 1) - 1), told)
    assert all(made.decide(path, handed(path)).counting is None for path in videos)
    assert made.compared == 2 and calls["decoded"] == 4
    assert len(told) == 1 and told[0].startswith(f"NVDEC, {HIDDEN}: it gives frame ")
    assert told[0].endswith("; PyAV decodes such clips")


def test_a_decoder_that_fails_is_not_trusted(videos: list[Path]) -> None:
    def fail(*_: object) -> np.ndarray:
        raise GraphFailed("no NVDEC")

    told: list[str] = []
    made, _ = trust(fail, told)
    assert all(made.decide(path, handed(path)).counting is None for path in videos)
    assert told == [f"NVDEC, {HIDDEN}: no NVDEC; PyAV decodes such clips"]


def test_other_colors_are_found_out(videos: list[Path]) -> None:
    told: list[str] = []
    made, _ = trust(lambda graph, handed, positions: graph.decode(handed, positions)[..., ::-1].copy(), told)
    assert all(made.decide(path, handed(path)).counting is None for path in videos)
    assert "colors differ by" in told[0] or "it gives frame" in told[0]


@pytest.mark.parametrize(("column", "trim"), [(1, (2, 0)), (-1, (1, 1))])
def test_a_wrong_border_is_cut_off(videos: list[Path], column: int, trim: tuple[int, int]) -> None:
    """Of a decoder for which the first column of an odd width is cut off in any case."""

    def spoil(graph: Any, handed: HandOver, positions: np.ndarray) -> np.ndarray:
        frames = graph.decode(handed, positions)
        frames[:, :, column] = 255 - frames[:, :, column]
        return frames

    made, _ = trust(spoil, [])
    assert {made.decide(path, handed(path)).trim for path in videos} == {trim}
    assert made.decisions[HIDDEN].trim == trim and made.decisions[HIDDEN].counting == "shown"


def test_clips_whose_frames_hardly_differ_prove_nothing(tmp_path: Path) -> None:
    path = tmp_path / "still.webm"
    path.write_bytes(webm(hidden_vp9(1) * 20))  # the same key frame twenty times
    told: list[str] = []
    made, _ = trust(lambda graph, handed, positions: graph.decode(handed, np.maximum(positions, 1) - 1), told)
    decisions = [made.decide(path, handed(path)) for _ in range(MOST_CLIPS + 2)]
    assert made.compared == MOST_CLIPS
    assert [d.counting for d in decisions] == ["decoded"] * MOST_CLIPS + [None, None]
    assert "no clip of which the frames could be told apart" in told[0]


def test_a_decision_is_kept_and_read_again() -> None:
    for decision in (Decision("decoded", trim=(1, 0), clips=2), Decision(None, "colors differ by 9.0 of 255", clips=4)):
        assert Decision.of_dict(json.loads(json.dumps(decision.as_dict()))) == decision
    for damaged in ({}, {"counting": "x", "reason": "", "trim": [0, 0], "clips": 1}, {"counting": None, "trim": 3}):
        assert Decision.of_dict(damaged) is None


def test_through_the_loader_no_clip_is_compared_twice_nor_changed_by_its_neighbors(videos: list[Path]) -> None:
    """Compared are two clips of a kind, whatever the order and the batches, and every clip is the same to the bit."""
    requests = [wanted(path) for path in videos]
    made = {}
    for order in (requests, requests[::-1]):
        loader = ClipLoader(clip=CLIP, batch=4, data=DALI, device=CPU)
        batches = list(loader.batches([order[:4], order[4:8], order[8:]] * 2))
        assert loader.decoder_trust.compared == 2
        assert {name: d.counting for name, d in loader.decoder_trust.decisions.items()} == {HIDDEN: "shown"}
        for batch in batches:
            for request, clip in zip(batch.requests, batch.clips, strict=True):
                assert torch.equal(made.setdefault(request.id, clip), clip)
    for request in requests:
        true = torch.from_numpy(decode_clips(request.path, request, size=CLIP.size)[0])
        assert (made[request.id].float() - true.float()).abs().mean() < 3


def test_loaders_share_what_is_known_and_verifying_can_be_turned_off(videos: list[Path]) -> None:
    requests = [wanted(path) for path in videos[:4]]
    shared = make_trust(DALI, CPU)
    for _ in range(2):
        loader = ClipLoader(clip=CLIP, batch=4, data=DALI, device=CPU, decoder_trust=shared)
        assert len(list(loader.batches([requests]))) == 1
    assert shared.compared == 2
    without = ClipLoader(clip=CLIP, batch=4, data=DALI.model_copy(update={"verify_decoder": False}), device=CPU)
    assert len(list(without.batches([requests]))) == 1
    assert without.decoder_trust.compared == 0 and str(without.decoder_trust.decisions[HIDDEN]) == "not compared"


def test_kinds_that_failed_are_decoded_by_pyav(videos: list[Path]) -> None:
    requests = [wanted(path) for path in videos[:4]]
    loader = ClipLoader(clip=CLIP, batch=4, data=DALI, device=CPU)
    loader.decoder_trust.decisions[HIDDEN] = Decision(None, "for a reason")
    (batch,) = loader.batches([requests])
    for request, clip in zip(batch.requests, batch.clips, strict=True):
        assert torch.equal(clip, torch.from_numpy(decode_clips(request.path, request, size=CLIP.size)[0]))
    assert loader.decoder_trust.compared == 0


def test_judging_needs_the_frames_that_were_asked_for() -> None:
    rng = np.random.default_rng(0)
    true = {n: rng.integers(0, 256, (12, 16, 3), np.uint8) for n in range(5)}
    asked = np.array([1, 2, 3])
    right = np.stack([true[n] for n in asked])
    assert judge(right, true, asked, trim=(0, 0)).proves
    assert judge(right[[1, 0, 2]], true, asked, trim=(0, 0)).reason == "it gives frame 2 for frame 1"
    assert "frames of (2," in judge(right[:2], true, asked, trim=(0, 0)).reason
