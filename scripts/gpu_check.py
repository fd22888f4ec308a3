#!/usr/bin/env python3
"""Proves the GPU path on the machine at hand, in minutes, from a checkout without installing it.

    python scripts/gpu_check.py --out DIR              # everything: DIR/gpu_check.json and DIR/gpu_check.md
    python scripts/gpu_check.py --sections decode,model
    python scripts/gpu_check.py --quick                # tiny sizes, and nothing that takes a minute
    python scripts/gpu_check.py --dry-run              # tiny sizes, and all that needs no CUDA: run it where there is no GPU

It needs torch, and pydantic for networks; what else is missing is reported as missing. Under 8 minutes in all, with a time
limit for each part. Exit code: 0 if nothing failed, else 1.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Helper processes import this file too, and need both paths and the stand-ins.
for folder in (HERE, HERE.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from gpu_check import stand_ins  # noqa: E402

stand_ins.install()

if __name__ == "__main__":
    from gpu_check.main import main

    sys.exit(main(sys.argv[1:]))
