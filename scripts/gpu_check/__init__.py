"""The parts of `scripts/gpu_check.py`.

    main        arguments, time, files           sections    which sections there are, and how long each may take
    supervise   processes that run sections      worker      such a process
    record      what a section reports           tables      JSON and Markdown made of it

One file for each section, or two; `measure`, `usage` and `videos` are what they share. Nothing here imports torch before
a section runs, so that the process that watches the others has nothing to do with the GPU.
"""
