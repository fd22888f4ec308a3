"""A test double of the prober: it aborts or hangs on files whose name says so, as a demuxer does on a hostile video."""

import os
import time
from pathlib import Path
from typing import Any

from ssv2rt.core.worker_pool import Worker
from ssv2rt.dataset import file_facts


def deadly_prober(**options: Any) -> Worker[file_facts.ProbeFile, file_facts.ProbeFacts | None]:
    facts_of = file_facts.file_facts

    def look(path: Path, *arguments: Any) -> file_facts.ProbeFacts | None:
        if path.name == "2.mp4":
            os.abort()
        if path.name == "3.mp4":
            time.sleep(3600)
        return facts_of(path, *arguments)

    file_facts.file_facts = look
    return file_facts.prober(**options)
