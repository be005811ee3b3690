"""Downloads from the public homes of data sets: whole or not at all, and checked by content."""

import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from drifting_policy.data.image_cache import cached_sha256
from drifting_policy.data.replay_buffer import ReplayBuffer
from drifting_policy.types import DatasetError

TIMEOUT_SECONDS = 30
# What a damaged, encrypted or exotic zip file raises.
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)


def fetch(url: str, destination: Path, *, member: str | None = None, relative: str) -> Path:
    """The file at `url`, or the folder `member` inside that zip file, stored as `destination`.

    Raises:
        DatasetError: says both ways to get the data: the network, or a folder that holds `relative`.
    """
    draft = destination.with_name(f".{destination.name}.{os.getpid()}.draft")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        _download(url, draft)
        if member is None:
            draft.replace(destination)
        else:
            _extract(draft, member, destination)
    except (*UNREADABLE, OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        reason = " ".join(str(error).split())
        raise DatasetError(
            f"The data set could not be downloaded from {url} ({reason}). Either connect to the network and try again, or set "
            f"DRIFTING_POLICY_DATA to a folder that holds {relative}."
        ) from error
    finally:
        if draft.exists():
            draft.unlink()
    return destination


def array_sha256(values: np.ndarray) -> str:
    """Checksum of the values alone, whatever the file format. Of cached images it was taken when they were written."""
    if known := cached_sha256(values):
        return known
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def verify_arrays(buffer: ReplayBuffer, sha256: Mapping[str, str]) -> None:
    """Compare arrays (and `episode_ends`) with known checksums of their values.

    Raises:
        DatasetError: names the key that differs.
    """
    for key, expected in sha256.items():
        values = buffer.episode_ends if key == "episode_ends" else buffer.arrays.get(key)
        if values is None:
            continue
        if (got := array_sha256(values)) != expected:
            raise DatasetError(
                f"{buffer.place}: '{key}' is not the published data (sha256 {got[:16]}, expected {expected[:16]}). "
                "Delete the file and fetch it again."
            )


def _download(url: str, target: Path) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, target.open("wb") as file:
        total = int(response.headers.get("Content-Length") or 0)
        with tqdm(total=total or None, unit="B", unit_scale=True, desc=url.rsplit("/", 1)[-1]) as bar:
            received = 0
            while block := response.read(1 << 20):
                file.write(block)
                received += len(block)
                bar.update(len(block))
        if total and received != total:
            raise OSError(f"the connection broke after {received} of {total} bytes")


def _extract(archive: Path, member: str, destination: Path) -> None:
    """Unpack the folder `member` of a zip file; names that would leave it are refused."""
    folder = destination.with_name(f".{destination.name}.{os.getpid()}.folder")
    prefix = member.rstrip("/") + "/"
    try:
        with zipfile.ZipFile(archive) as zipped:
            names = [name for name in zipped.namelist() if name.startswith(prefix) and not name.endswith("/")]
            if not names:
                raise ValueError(f"the archive holds no folder {member}")
            for name in names:
                relative = PurePosixPath(name[len(prefix) :])
                if relative.is_absolute() or ".." in relative.parts:
                    raise ValueError(f"the archive holds the unsafe name {name}")
                target = folder / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                with zipped.open(name) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
        folder.rename(destination)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
