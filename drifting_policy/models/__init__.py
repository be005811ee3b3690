"""Networks, by the names that configurations and checkpoints use."""

from drifting_policy.models.encoders import StateEncoder
from drifting_policy.models.image_encoder import ImageEncoder
from drifting_policy.models.layers import Ema, Generator, ObservationEncoder
from drifting_policy.models.mlp import MlpGenerator
from drifting_policy.models.prefix_encoder import PrefixEncoder
from drifting_policy.models.transformer import TransformerGenerator
from drifting_policy.models.unet1d import UnetGenerator
from drifting_policy.models.vit_encoder import VitEncoder

ENCODERS = {"state": StateEncoder, "image": ImageEncoder, "vit": VitEncoder}
GENERATORS = {"mlp": MlpGenerator, "unet": UnetGenerator, "transformer": TransformerGenerator}

__all__ = ["ENCODERS", "GENERATORS", "Ema", "Generator", "ObservationEncoder", "PrefixEncoder"]
