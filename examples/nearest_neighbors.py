"""Finds the videos of a folder that are most like one video: python nearest_neighbors.py VIDEO FOLDER"""

import sys

import numpy as np

import ssv2rt

if len(sys.argv) != 3:
    sys.exit("usage: python nearest_neighbors.py VIDEO FOLDER")
model = ssv2rt.load()
query = model.embed(sys.argv[1])[0]
names, rows = [], []
for prediction in model.predict(sys.argv[2], embeddings=True):
    if prediction.embedding is not None:
        names.append(prediction.video)
        rows.append(prediction.embedding)
features = np.stack(rows)
similarity = features @ query / (np.linalg.norm(features, axis=1) * np.linalg.norm(query))
for number in np.argsort(-similarity)[:5]:
    print(f"{similarity[number]:.3f} {names[number]}")
