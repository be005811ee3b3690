"""Films and pictures inside the page, as long as there is room."""

import base64
from pathlib import Path

KINDS = {".mp4": "video/mp4", ".png": "image/png"}


class Media:
    """Turns files into data: addresses until `room` characters are used up; what then comes is left out."""

    def __init__(self, room: int) -> None:
        """Room for so many characters."""
        self.room = room

    def address(self, file: Path) -> str | None:
        """The content of `file` as an address; None where it is missing, or there is no room for it."""
        try:
            start = f"data:{KINDS[file.suffix]};base64,"
            if len(start) + 4 * (file.stat().st_size + 2) // 3 > self.room:
                return None
            address = start + base64.b64encode(file.read_bytes()).decode()
        except OSError:
            return None
        self.room -= len(address)
        return address


def why_absent(file: Path) -> str:
    """The reason why a page does not show `file`."""
    if not file.is_file():
        return f"{file} is missing"
    return f"left out to keep the page small: {file} ({file.stat().st_size / 1e6:.1f} MB)"


def picture_size(file: Path) -> tuple[int, int]:
    """Width and height that the header of a PNG file tells; a square where it is none."""
    try:
        with file.open("rb") as stream:
            head = stream.read(24)
    except OSError:
        head = b""
    if len(head) < 24 or head[:8] != b"\x89PNG\r\n\x1a\n":
        return 256, 256
    return int.from_bytes(head[16:20], "big") or 256, int.from_bytes(head[20:24], "big") or 256
