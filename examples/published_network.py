"""Predicts with a network that others have trained: python published_network.py NAME FOLDER

NAME is such as slow-r50-ssv2; `ssv2rt models` lists the names. The weights are downloaded at their first use. To score many
videos, build an engine: `ssv2rt import NAME`, `ssv2rt build-engine --fp16`.
"""

import sys

import ssv2rt

if len(sys.argv) != 3:
    sys.exit("usage: python published_network.py NAME FOLDER")
model = ssv2rt.load(sys.argv[1])
print(model)
for prediction in model.predict(sys.argv[2]):
    print(prediction.video, prediction.status, prediction.top(3))
