"""Pictures as Pillow reads them, and the square of bytes that is cut out of each."""

import io
import struct
import zlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from drifting_policy.types import DatasetError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # by content: some of ImageNet's files are not what their names say
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # of 8 bits; deeper ones would be clipped without a word
PIXEL_LIMIT = 1 << 26  # that an image may announce: 8192 x 8192
# What Pillow raises over bytes that are cut off, changed or no image.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError, TypeError, OverflowError)
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


class BrokenImage(DatasetError):
    """One image that cannot be decoded; the sentence is the reason alone, for the caller knows the name."""


def read_picture(data: bytes, *, name: str) -> Image.Image:
    """The picture in the bytes of a JPEG, PNG, WebP or BMP file, decoded.

    Raises:
        BrokenImage: the bytes are damaged, of another format, or hold more than 8 bits per channel.
        DatasetError: the file announces more than PIXEL_LIMIT pixels, and decoding it might exhaust the memory.
    """
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except BOMBS as error:
        raise _bomb(name, "too many") from error
    except DAMAGE as error:
        raise BrokenImage(_reason(error)) from error
    if (pixels := picture.width * picture.height) > PIXEL_LIMIT:
        raise _bomb(name, str(pixels))
    if picture.mode not in MODES:
        raise BrokenImage(f"its pixels are of the mode {picture.mode}, not of 8 bits per channel")
    try:
        picture.load()
    except DAMAGE as error:
        raise BrokenImage(_reason(error)) from error
    return picture


def center_crop(picture: Image.Image, *, size: int, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """The square in the middle of `picture`, `size` pixels wide: the protocol of ADM (Dhariwal & Nichol 2021) and DiT.

    The picture is halved, each pixel the mean of four, while its shorter side is at least twice `size`; then it is resized by
    bicubic interpolation until its shorter side is `size`, and what the longer one has more is cut off at both ends. Tags of
    orientation are not followed, and what is transparent gets the colour that the file has there.

    Args:
        picture: in any mode of MODES.
        size: height and width of the result.
        channels: 3 for RGB, 1 for grey.
    """
    if picture.mode in ("P", "PA"):
        picture = picture.convert("RGBA")  # on the direct way to RGB Pillow warns of transparency
    picture = picture.convert("L" if channels == 1 else "RGB")
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    pixels = np.asarray(picture.crop((left, top, left + size, top + size)), np.uint8)
    return pixels.reshape(size, size, channels)


def _bomb(name: str, pixels: str) -> DatasetError:
    return DatasetError(
        f"{name} announces {pixels} pixels; more than {PIXEL_LIMIT} are not decoded, for they may be meant to exhaust the "
        "memory. Take it out of the data set, or make it smaller."
    )


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
