"""Files and folders that are whole or absent: written beside their place, then renamed into it."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """The place of a draft, which becomes `path` at the end, or is gone if that fails."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`; if that fails, `path` is as it was."""
    with _draft(path) as draft:
        draft.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`; if that fails, `path` is as it was."""
    with _draft(path) as draft:
        draft.write_text(text)


def write_json(path: Path, values: Any) -> None:
    """Write `values` to `path` as JSON that people can read; if that fails, `path` is as it was."""
    write_text(path, json.dumps(values, indent=1) + "\n")


def replace_folder(draft: Path, target: Path) -> None:
    """Put the folder `draft` in the place of `target`, for a folder cannot be renamed over one that holds files.

    If that fails, `target` is as it was.
    """
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.is_dir():
        target.rename(old)
    try:
        draft.rename(target)
    finally:
        if old.is_dir() and not target.exists():
            old.rename(target)
    shutil.rmtree(old, ignore_errors=True)
