"""Detects the format of a data set, and lists its clips."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ssv2rt.core.errors import UsageError, UserError, os_errors_as_user_errors
from ssv2rt.dataset.annotations import is_annotation_file, read_annotation_file, read_annotations
from ssv2rt.dataset.folders import read_folders
from ssv2rt.dataset.labelstudio import is_label_studio_file, read_label_studio
from ssv2rt.dataset.listing import Listing, escape_non_utf8
from ssv2rt.dataset.manifest import is_manifest
from ssv2rt.dataset.tables import TABLE_SUFFIXES, read_tables

_SUPPORTED = (
    "SSv2's JSON files, a folder for each class, or a .csv, .tsv or .parquet table with the columns path and label"
)


def list_clips(root: Path) -> Listing:
    """The clips of a data set in any supported format; see `listing`.

    Raises:
        UsageError: the path does not exist, or is a file that is neither a table of clips nor annotations.
        UserError: the folder is not a data set, or the data set is malformed.
    """
    try:
        mode = root.stat().st_mode
    except FileNotFoundError:
        raise UsageError(f"no data '{root}'; give --data a folder or a table of clips") from None
    except OSError as error:
        raise UsageError(f"cannot read '{root}': {error.strerror}; give --data a folder or a table of clips") from None
    if stat.S_ISREG(mode) and is_annotation_file(root):
        return read_annotation_file(root)
    if stat.S_ISREG(mode) and is_label_studio_file(root):
        return read_label_studio(root)
    if not stat.S_ISDIR(mode):
        if root.suffix.lower() not in TABLE_SUFFIXES or not stat.S_ISREG(mode):
            raise UsageError(
                f"'{root}' is neither a folder nor a .csv, .tsv or .parquet table nor a .json annotation file; give --data "
                "one of them"
            )
        if is_manifest(root):
            raise UsageError(f"'{root}' is a manifest; give the data set that it was made from")
        found = read_tables(root)
    else:
        with os_errors_as_user_errors(f"cannot read the data set '{root}'"):
            found = read_annotations(root) or read_tables(root) or read_folders(root)
    if found is None:
        raise UserError(f"no data set in '{root}', which {_content(root)}; expected {_SUPPORTED}")
    return found


def _content(folder: Path, most: int = 3) -> str:
    """What a folder holds, in words."""
    names = [escape_non_utf8(name) for name in sorted(os.listdir(folder)) if not name.startswith(".")]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"holds {', '.join(repr(name) for name in names[:most])}{more}" if names else "is empty"
