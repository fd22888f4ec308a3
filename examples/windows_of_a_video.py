"""Says what happens when in a long video: python windows_of_a_video.py VIDEO"""

import sys

import ssv2rt

if len(sys.argv) != 2:
    sys.exit("usage: python windows_of_a_video.py VIDEO")
model = ssv2rt.load()
before = ""
for window in model.windows(sys.argv[1], seconds=4, hop=2):
    label = window.label or window.status
    if label != before:
        print(f"{window.start:8.1f} s  {label} {window.probability or 0:.1%}")
    before = label
