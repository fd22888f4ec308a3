"""Predicts the class of every video below a folder, with the newest run: python score_a_folder.py FOLDER"""

import sys

import ssv2rt

if len(sys.argv) != 2:
    sys.exit("usage: python score_a_folder.py FOLDER")
model = ssv2rt.load()  # or ssv2rt.load("runs/NAME"), or the folder of an engine
print(model)
for prediction in model.predict(sys.argv[1]):
    if prediction.ok:
        best = ", ".join(f"{label} {probability:.1%}" for label, probability in prediction.top(3))
        print(f"{prediction.video}: {best}")
    else:
        print(f"{prediction.video}: {prediction.status}")
