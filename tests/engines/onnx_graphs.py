"""Small ONNX graphs as other programs write them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FRAMES, SIZE = 4, 32


def mean_graph(
    path: Path, *, uint8: bool = False, frames_first: bool = False, shape: Sequence[int] | None = None
) -> Path:
    """A graph with three classes, whose logits are the means of red, green and blue of its input.

    Args:
        path: file to write.
        uint8: whether it takes uint8 (N, T, S, S, 3), and not float.
        frames_first: whether it takes float (N, T, 3, S, S), and not (N, 3, T, S, S).
        shape: T, S and S, where the graph should not take 4 frames of 32x32.
    """
    sizes = list(shape or (FRAMES, SIZE, SIZE))
    dims = ["n", *sizes, 3] if uint8 else ["n", sizes[0], 3, *sizes[1:]] if frames_first else ["n", 3, *sizes]
    kind = TensorProto.UINT8 if uint8 else TensorProto.FLOAT
    axes = [1, 2, 3] if uint8 else [1, 3, 4] if frames_first else [2, 3, 4]
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f", "axes"], ["y"], keepdims=0),
    ]
    return _save(path, nodes, (kind, dims), {"axes": np.array(axes)}, classes=3)


def ending_in(path: Path, *ends: str, opset: int = 18, seed: int = 0) -> Path:
    """A graph of a convolution and five classes, followed by operators such as Softmax. Without them it gives logits.

    Args:
        path: file to write.
        ends: operators, each with the attributes that it has by default.
        opset: its opset.
        seed: of the weights.
    """
    rng = np.random.default_rng(seed)
    weights = {"w": rng.normal(size=(8, 3, 1, 3, 3), scale=0.3), "v": rng.normal(size=(8, 5), scale=2)}
    names = ["y0", *(f"y{number + 1}" for number in range(len(ends)))]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "v"], ["y0"]),
    ]
    nodes += [helper.make_node(op, [names[n]], [names[n + 1]]) for n, op in enumerate(ends)]
    arrays = {name: array.astype(np.float32) for name, array in weights.items()}
    return _save(
        path,
        nodes,
        (TensorProto.FLOAT, ["n", 3, FRAMES, SIZE, SIZE]),
        arrays,
        classes=5,
        output=names[-1],
        opset=opset,
    )


def frame_by_frame(path: Path, seed: int = 0) -> Path:
    """A graph that takes float (N, T, 3, S, S), and averages the five logits of each frame over the clip."""
    rng = np.random.default_rng(seed)
    arrays = {
        "w": rng.normal(size=(8, 3, 3, 3), scale=0.3).astype(np.float32),
        "v": rng.normal(size=(8, 5), scale=2).astype(np.float32),
        "frames": np.array([-1, 3, SIZE, SIZE]),
        "clips": np.array([-1, FRAMES, 5]),
        "time": np.array([1]),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "frames"], ["r"]),
        helper.make_node("Conv", ["r", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "v"], ["e"]),
        helper.make_node("Reshape", ["e", "clips"], ["f"]),
        helper.make_node("ReduceMean", ["f", "time"], ["y"], keepdims=0),
    ]
    return _save(path, nodes, (TensorProto.FLOAT, ["n", FRAMES, 3, SIZE, SIZE]), arrays, classes=5)


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    takes: tuple[int, list[object]],
    arrays: dict[str, np.ndarray],
    *,
    classes: int,
    output: str = "y",
    opset: int = 18,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", *takes)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", classes])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), path)
    return path
