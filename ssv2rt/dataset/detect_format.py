"""Detects the format of a data set, and lists its clips."""

from __future__ import annotations

import os
import stat
from itertools import islice
from pathlib import Path

from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.dataset.annotations import is_annotation_file, read_annotation_file, read_annotations
from ssv2rt.dataset.folders import read_folders
from ssv2rt.dataset.listing import PICTURE_SUFFIXES, Listing
from ssv2rt.dataset.manifest import is_manifest
from ssv2rt.dataset.tables import TABLE_SUFFIXES, read_tables

_SUPPORTED = "SSv2's JSON files, a folder for each class, or a .csv or .parquet table with the columns path and label"


_MOST_LOOKED_AT = 10_000
"""Files, to say why a folder is no data set."""


def list_clips(root: Path) -> Listing:
    """The clips of a data set in any supported format; see `listing`.

    Raises:
        UsageError: the path does not exist, or is a file that is neither a table of clips nor annotations.
        UserError: the folder is not a data set, or the data set is malformed.
    """
    try:
        is_folder = stat.S_ISDIR(root.stat().st_mode)
    except FileNotFoundError:
        raise UsageError(f"no data '{root}'; give --data a folder or a table of clips") from None
    except OSError as error:
        raise UsageError(f"cannot read '{root}': {error.strerror}; give --data a folder or a table of clips") from None
    if not is_folder and is_annotation_file(root):
        return read_annotation_file(root)
    if not is_folder:
        if root.suffix.lower() not in TABLE_SUFFIXES:
            raise UsageError(
                f"'{root}' is neither a folder nor a .csv or .parquet table nor a .json annotation file; give --data one of "
                "them"
            )
        if is_manifest(root):
            raise UsageError(f"'{root}' is a manifest; give the data set that it was made from")
        found = read_tables(root)
    else:
        found = read_annotations(root) or read_tables(root) or read_folders(root)
    if found is None:
        looked_at = islice((name for _, _, names in os.walk(root) for name in names), _MOST_LOOKED_AT)
        if picture := next((name for name in looked_at if name.lower().endswith(PICTURE_SUFFIXES)), None):
            raise UserError(
                f"no videos in '{root}', but pictures such as '{picture}'; make a video of each folder's frames"
            )
        raise UserError(f"no data set in '{root}'; expected {_SUPPORTED}")
    return found
