"""Runs the ONNX graph of an fp32 engine by PyAV and ONNX Runtime alone: python onnx_without_ssv2rt.py ENGINE VIDEO

ENGINE is the folder of an engine with one view, made by `ssv2rt build-engine --fp32`. The video has square pixels and is not
rotated.
"""

import json
import sys
from pathlib import Path

import av
import numpy as np
import onnxruntime

if len(sys.argv) != 3:
    sys.exit("usage: python onnx_without_ssv2rt.py ENGINE VIDEO")
folder, video = Path(sys.argv[1]), sys.argv[2]
facts = json.loads((folder / "bundle.json").read_text())
count, size, share = (facts["clip"][name] for name in ("frames", "size", "center_crop"))
frames = list(av.open(video).decode(video=0))
first = frames[0]
side = round(min(first.width, first.height) * share)
left, top = ((length - side) // 4 * 2 for length in (first.width, first.height))  # even
graph = av.filter.Graph()
graph.link_nodes(
    graph.add_buffer(width=first.width, height=first.height, format=first.format, time_base=first.time_base),
    graph.add("crop", f"{side}:{side}:{left}:{top}:exact=1"),
    graph.add("scale", f"{size}:{size}:flags=bilinear+full_chroma_int"),
    graph.add("format", "pix_fmts=gbrp"),
    graph.add("buffersink"),
).configure()
clip = np.empty((1, count, size, size, 3), np.uint8)
for place in range(count):
    graph.push(frames[int((place + 0.5) * len(frames) / count)])
    clip[0, place] = graph.vpull().to_ndarray()
session = onnxruntime.InferenceSession(folder / facts["onnx_file"])
logits = session.run(["logits"], {"frames": clip})[0][0]
probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
print(facts["labels"][int(probabilities.argmax())], f"{probabilities.max():.6f}")
