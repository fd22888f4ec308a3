"""Exports a trained model to an ONNX graph.

Input: uint8 `frames` (batch, T, H, W, 3). Outputs: fp32 `logits` (batch, classes) and `embedding` (batch, features), which
is the input of the classifier. The graph is fp32, with batch norms folded into the convolutions; `half` and `quantization`
convert it to other precisions.
Letters: N clips, T frames, S size, D features, K classes.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from pathlib import Path

import onnx
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ssv2rt import __version__
from ssv2rt.core.recipes import Clip
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.factorized import ShiftConv3d

INPUT, OUTPUT, EMBEDDING = "frames", "logits", "embedding"
OPSET = 20
IR_VERSION = 9
"""The oldest version of the file format that may have `OPSET`."""
PRODUCER = "ssv2rt"
"""What graphs of this package name as their producer."""
SCOPES = "pkg.torch.onnx.name_scopes"
"""Key of the node metadata that holds the path of the node's module."""


class EngineModel(nn.Module):
    """A copy of a model for export: in fp32, without dropout, with batch norms folded.

    The original is not changed.

    Args:
        model: any network.
        fold_shifts: whether temporal shifts are folded into the convolutions behind them, too.
    """

    def __init__(self, model: ClipModel, *, fold_shifts: bool = True) -> None:
        super().__init__()
        self.normalise = copy.deepcopy(model.normalise).float()
        self.backbone = fold_batch_norms(copy.deepcopy(model.backbone).float().eval(), fold_shifts=fold_shifts)
        self.head = copy.deepcopy(model.head).float()

    def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 (N, T, S, S, 3) to logits, float32 (N, K), and the embedding, float32 (N, D)."""
        embedding = self.backbone(self.normalise(frames))
        return self.head(embedding), embedding


def fold_batch_norms(module: nn.Module, *, fold_shifts: bool = True) -> nn.Module:
    """Folds, in place, every batch norm that follows a convolution in a Sequential into that convolution.

    With `fold_shifts`, temporal shifts before convolutions are folded into them, too.

    Raises:
        AssertionError: a batch norm is left because it does not follow a convolution.
    """
    for part in module.modules():
        if not isinstance(part, nn.Sequential):
            continue
        for number in range(len(part) - 1):
            first, second = part[number], part[number + 1]
            if fold_shifts and isinstance(first, ShiftConv3d):
                first = first.folded()
            if isinstance(first, (nn.Conv2d, nn.Conv3d)) and isinstance(second, (nn.BatchNorm2d, nn.BatchNorm3d)):
                part[number] = fuse_conv_bn_eval(first, second)
                part[number + 1] = nn.Identity()
    left = [name for name, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    assert not left, f"batch norms that follow no convolution: {left}"
    return module


def export_onnx(model: ClipModel, path: Path, *, clip: Clip, labels: tuple[str, ...], fold_shifts: bool = True) -> None:
    """Writes the model as ONNX with a dynamic batch, checked by `onnx.checker`.

    Args:
        model: the trained model, in any memory format. It is moved to the CPU.
        path: the file to write.
        clip: T and S, fixed in the graph.
        labels: K class names, stored in the file's metadata.
        fold_shifts: see `EngineModel`.
    """
    engine = EngineModel(model.cpu(), fold_shifts=fold_shifts).eval()
    example = torch.zeros(2, clip.frames, clip.size, clip.size, 3, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        program = torch.onnx.export(
            engine,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT, EMBEDDING],
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch", min=1, max=4096)}},
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    graph.producer_name, graph.producer_version = PRODUCER, __version__
    for node in graph.graph.node:  # drop stack traces with local paths; keep the scopes, which `node_origin` reads
        kept = [entry for entry in node.metadata_props if entry.key == SCOPES]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    facts = {"labels": json.dumps(labels), "clip": clip.model_dump_json(), "precision": "fp32"}
    onnx.helper.set_model_props(graph, facts)
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, path)
