"""The codec of JPEG 2000 images in zarr v2 stores, as Diffusion Policy writes them: `imagecodecs_jpeg2k`.

One chunk is one image (1, h, w, c), and its bytes are a JPEG 2000 code stream. Stores name the codec together with the
settings of the encoder that wrote them; to decode, none of them is needed.
"""

from typing import Any

import numcodecs
import numcodecs.registry
import numpy as np
from numcodecs.abc import Codec

from drifting_policy.types import MissingPackage

CODEC_ID = "imagecodecs_jpeg2k"


class Jpeg2000(Codec):
    """Decodes images by imagecodecs; settings are kept as they are found, so that a store's description survives."""

    codec_id = CODEC_ID

    def __init__(self, **settings: Any) -> None:
        """Settings of the encoder, of which `level` and `reversible` are used to encode."""
        self.settings = settings

    def encode(self, buf: Any) -> bytes:
        """The code stream of one image, lossless unless the settings say otherwise."""
        image = np.asarray(buf)
        picture = image.reshape(image.shape[-3:]) if image.ndim > 3 else image
        options = {key: self.settings[key] for key in ("level", "reversible") if self.settings.get(key) is not None}
        encoded = _imagecodecs().jpeg2k_encode(picture, codecformat="j2k", **(options or {"reversible": True}))
        return bytes(encoded)

    def decode(self, buf: Any, out: Any = None) -> Any:
        """The image in a code stream; `out` takes its bytes where it is given."""
        image = np.ascontiguousarray(_imagecodecs().jpeg2k_decode(bytes(buf)))
        if out is None:
            return image
        np.asarray(out).reshape(-1).view(np.uint8)[:] = image.reshape(-1).view(np.uint8)
        return out

    def get_config(self) -> dict[str, Any]:
        """The description that a store keeps."""
        return {"id": CODEC_ID, **self.settings}


def know_jpeg2000() -> None:
    """Let zarr find the codec by its name, unless another package has registered one."""
    if CODEC_ID not in numcodecs.registry.codec_registry:
        numcodecs.register_codec(Jpeg2000)


def _imagecodecs() -> Any:
    try:
        import imagecodecs
    except ImportError as error:
        raise MissingPackage("JPEG 2000 images need imagecodecs: pip install 'drifting-policy[jpeg2000]'.") from error
    return imagecodecs
