"""Downloads from a server on this machine are whole or absent, and what fails says both ways to get the data."""

import io
import socket
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from drifting_policy.data import download
from drifting_policy.data.download import array_sha256, fetch, verify_arrays
from drifting_policy.data.replay_buffer import ReplayBuffer
from drifting_policy.types import DatasetError

CONTENT = bytes(range(256)) * 9000  # more than one block


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT in the manner that the path names."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.close_connection = True
        manner = self.path.strip("/")
        if manner == "gone":
            self.send_error(404)
            return
        if manner == "garbage":
            self.wfile.write(b"good morning\r\n\r\n")
            return
        self.send_response(200)
        if manner == "chunked":  # promises 0x1000 bytes, gives fewer
            self.send_header("Transfer-Encoding", "chunked")
        else:
            sizes: Mapping[str, object] = {"whole": len(CONTENT), "broken": len(CONTENT) + 1, "riddle": "many"}
            if manner in sizes:
                self.send_header("Content-Length", str(sizes[manner]))
        self.end_headers()
        if manner == "silent":
            self.wfile.flush()
            time.sleep(1.0)
        else:
            self.wfile.write(b"1000\r\nfew" if manner == "chunked" else CONTENT)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def refused(url: str, target: Path, words: str, member: str | None = None) -> None:
    """Nothing but one sentence comes of it."""
    with pytest.raises(DatasetError, match=words) as caught:
        fetch(url, target, member=member, relative="pusht/replay.zarr.zip")
    message = str(caught.value)
    assert "\n" not in message
    assert url in message
    assert "connect to the network" in message
    assert "DRIFTING_POLICY_DATA to a folder that holds pusht/replay.zarr.zip" in message


@pytest.mark.parametrize("manner", ["whole", "endless"])
def test_a_file_arrives_whole(server: str, manner: str, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "cache" / "file.zip"
    assert fetch(f"{server}/{manner}", target, relative="file.zip") == target
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("manner", "words"),
    [
        ("broken", f"broke after {len(CONTENT)} of {len(CONTENT) + 1} bytes"),
        ("chunked", "IncompleteRead"),
        ("gone", "404"),
        ("garbage", "good morning"),
        ("riddle", "many"),
        ("silent", "timed out"),
    ],
)
def test_a_failed_download_leaves_what_was_there(
    server: str, manner: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.6 if manner == "silent" else 20)
    target = tmp_path / "file.zip"
    refused(f"{server}/{manner}", target, words)
    assert list(tmp_path.iterdir()) == []
    target.write_text("earlier")
    refused(f"{server}/{manner}", target, words)
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_text() == "earlier"


def test_without_a_network_both_ways_are_named(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    refused(f"http://127.0.0.1:{port}/x.zip", tmp_path / "x.zip", "refused")
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_made_is_told(server: str, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    refused(f"{server}/whole", tmp_path / "cache" / "file.zip", "cache")
    assert (tmp_path / "cache").read_text() == "a file"


def archive(path: Path, files: Mapping[str, str]) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, text in files.items():
            zipped.writestr(name, text)
    return path.as_uri()


def test_a_folder_of_an_archive_arrives_alone(tmp_path: Path) -> None:
    files = {"top/a.zarr/.zgroup": "g", "top/a.zarr/data/x/0": "0", "top/a.zarr/empty/": "", "top/a.zarr2/y": "y", "z": "z"}
    url = archive(tmp_path / "a.zip", files)
    for number, member in enumerate(("top/a.zarr", "top/a.zarr/")):
        target = tmp_path / "cache" / str(number) / "a.zarr"
        assert fetch(url, target, member=member, relative="a") == target
        found = {path.relative_to(target).as_posix(): path.read_text() for path in target.rglob("*") if path.is_file()}
        assert found == {".zgroup": "g", "data/x/0": "0"}
        assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("name", ["a/../../evil", "a/..", "a//evil", "a/deep/../../../evil"])
def test_names_that_leave_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    url = archive(tmp_path / "a.zip", {"a/good": "good", name: "evil"})
    refused(url, tmp_path / "cache" / "a", "unsafe name", member="a")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a.zip", tmp_path / "cache"]
    assert list((tmp_path / "cache").iterdir()) == []


def damaged(kind: str) -> bytes:
    """A zip file with one compressed file `a/x`, spoilt."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("a/x", CONTENT)
    content = bytearray(stream.getvalue())
    local, central = content.index(b"PK\3\4"), content.index(b"PK\1\2")
    if kind == "stream":
        content[local + 40 : local + 60] = b"\xff" * 20
    elif kind == "torn":
        del content[central:]
    elif kind == "checksum":
        content[central + 16] ^= 1
    elif kind == "encrypted":
        content[local + 6] |= 1
        content[central + 8] |= 1
    elif kind == "method":
        content[local + 8] = content[central + 10] = 99
    return bytes(content)


@pytest.mark.parametrize("kind", ["stream", "torn", "checksum", "encrypted", "method"])
def test_damaged_archives_leave_nothing(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(damaged(kind))
    refused((tmp_path / "a.zip").as_uri(), tmp_path / "cache" / "a", "could not be downloaded", member="a")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_missing_member_and_an_occupied_place_are_told(tmp_path: Path) -> None:
    url = archive(tmp_path / "a.zip", {"a/x": "x", "ab/y": "y"})
    refused(url, tmp_path / "cache" / "b", "holds no folder b", member="b")
    (tmp_path / "cache" / "a" / "mine").mkdir(parents=True)
    refused(url, tmp_path / "cache" / "a", "not empty", member="a")
    assert sorted((tmp_path / "cache").rglob("*")) == [tmp_path / "cache" / "a", tmp_path / "cache" / "a" / "mine"]


def test_checksums_are_of_values_alone() -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert array_sha256(np.asfortranarray(values)) == array_sha256(values) != array_sha256(values + 1)
    assert array_sha256(values.repeat(2, 0)[::2]) == array_sha256(values)
    buffer = ReplayBuffer({"x": values}, np.array([4]), "there")
    right = {"x": array_sha256(values), "episode_ends": array_sha256(np.array([4]))}
    verify_arrays(buffer, right | {"absent": "0"})
    for key in right:
        with pytest.raises(DatasetError, match=f"there: '{key}' is not the published data"):
            verify_arrays(buffer, right | {key: array_sha256(values + 1)})
