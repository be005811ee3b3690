"""Extractors: networks whose features tell how alike two sets of images are. Numbers of different ones cannot be compared."""

import abc
import hashlib
import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

import torch
from einops import rearrange, repeat
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from drifting_policy.checkpoint import file_sha256, first_line
from drifting_policy.imagenet.classifier import ClassifierOptions, ImageClassifier, load_classifier
from drifting_policy.types import ConfigError, MissingPackage

FORM = "extractor=classifier, classifier:FOLDER, inception, inception:FILE, dinov2 or dinov2:NAME_OR_FOLDER"
INCEPTION_FILE, INCEPTION_SHA256 = "weights-inception-2015-12-05-6726825d.pth", "6726825d"  # how its checksum begins
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
DINOV2, DINOV2_SIZE = "facebook/dinov2-large", 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Found = tuple[Float[Tensor, "n e"], Float[Tensor, "n classes"] | None]


class Extractor(abc.ABC):
    """Images in, features out.

    Attributes:
        name: What results carry, so that nobody mixes them up.
        distance: What the Frechet distance of the features is called.
        score: What the formula of the Inception score gives for its probabilities.
        dim: Numbers of a feature.
        fingerprint: Checksum of the weights.
        class_names: What the probabilities stand for; empty where there are none, or their order is not that of a data set.
        test_accuracy: The share of real test images whose class it finds; None where nobody measured it.
        options: How the own classifier was trained; None for other networks.
    """

    name: str
    distance: str
    score: str
    dim: int
    fingerprint: str
    class_names: tuple[str, ...] = ()
    test_accuracy: float | None = None
    options: ClassifierOptions | None = None

    @abc.abstractmethod
    def extract(self, images: UInt8[Tensor, "n h w c"]) -> Found:
        """Features "n e" of bytes, float32 on the CPU, and probabilities of classes where the network tells some.

        Raises:
            ConfigError: images that the network cannot see.
        """


@final
class ClassifierExtractor(Extractor):
    """The penultimate layer of the own classifier: for small images, where Inception sees little."""

    distance, score = "feature distance (own classifier)", "class score (own classifier)"

    def __init__(
        self, model: ImageClassifier, *, test_accuracy: float | None = None, options: ClassifierOptions | None = None
    ) -> None:
        """Take the features of `model`, on its device."""
        self.test_accuracy, self.options = test_accuracy, options
        self.model, self.dim, self.class_names = model, model.feature_dim, model.class_names
        self.fingerprint = weights_digest(model)
        self.name = f"classifier:{self.fingerprint[:12]}"

    @torch.no_grad()
    def extract(self, images: UInt8[Tensor, "n h w c"]) -> Found:
        """Features and probabilities of the classes of the data set."""
        features = self.model.features(to_network(images, self.model) / 127.5 - 1)
        return features.cpu(), self.model.head(features).softmax(1).cpu()


@final
class InceptionExtractor(Extractor):
    """The Inception network of Heusel et al. 2017 as TensorFlow computes it, by torch-fidelity: 2,048 numbers, 1,008 classes.

    It resizes as TensorFlow 1 did, without antialiasing; a distance after another resizing is not the published FID (Parmar et
    al. 2022). Its classes are not in the order of ImageNet's.
    """

    dim = 2048

    def __init__(self, weights: Path | None = None, *, device: torch.device) -> None:
        """Load `weights`, or the published ones: from PyTorch's cache, or downloaded into it.

        Raises:
            MissingPackage: torch-fidelity, or torchvision which it needs, is not installed.
            ConfigError: the weights cannot be had, or are damaged.
        """
        network = _inception_class()
        file = weights or inception_weights()
        self.fingerprint = _checked_weights(file)
        published = self.fingerprint.startswith(INCEPTION_SHA256)
        self.distance = "FID" if published else "Frechet distance (Inception, other weights)"
        self.score = "Inception score" if published else "class score (Inception, other weights)"
        self.name = "inception" if published else f"inception:{self.fingerprint[:12]}"
        try:
            self.model: Any = network("inception-v3-compat", ["2048"], str(file), antialias=False).to(device)
        except (RuntimeError, KeyError, AttributeError) as error:
            raise ConfigError(f"{file} does not hold the weights of the Inception network of torch-fidelity.") from error

    @torch.no_grad()
    def extract(self, images: UInt8[Tensor, "n h w c"]) -> Found:
        """Features, and probabilities without the bias of the last layer, as Inception scores are computed."""
        pixels = rearrange(_coloured(images), "n h w c -> n c h w").to(self.model.fc.weight.device)
        features = self.model(pixels)
        return features.cpu(), (features @ self.model.fc.weight.T).softmax(1).cpu()


@final
class Dinov2Extractor(Extractor):
    """The class token of DINOv2 (Oquab et al. 2023), whose distances agree better with people (Stein et al. 2023)."""

    def __init__(self, place: str = DINOV2, *, device: torch.device) -> None:
        """Load the model called `place` at the Hugging Face Hub, or in a folder of that name.

        Raises:
            MissingPackage: transformers is not installed.
            ConfigError: the model cannot be had, or is another one.
        """
        try:
            from transformers import AutoConfig, AutoModel
        except ImportError as error:
            raise MissingPackage("extractor=dinov2 needs transformers: pip install 'drifting-policy[vit]'.") from error
        if place.startswith(("/", ".")) and not Path(place).is_dir():
            raise ConfigError(f"There is no folder {place}; give extractor=dinov2:FOLDER as transformers saves models.")
        try:
            config = AutoConfig.from_pretrained(place)
            self.model = AutoModel.from_pretrained(place, config=config, use_safetensors=True).to(device).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"The model '{place}' cannot be loaded ({first_line(error)}). Download it where there is a network, and give "
                "its folder: extractor=dinov2:FOLDER."
            ) from error
        if config.model_type not in ("dinov2", "dinov2_with_registers"):
            raise ConfigError(f"'{place}' is a model of the type {config.model_type}; extractor=dinov2 takes dinov2.")
        self.dim, self.fingerprint = config.hidden_size, weights_digest(self.model)
        self.name = f"dinov2:{self.fingerprint[:12]}"
        self.distance, self.score = f"Frechet distance (DINOv2, {config.hidden_size} numbers)", ""

    @torch.no_grad()
    def extract(self, images: UInt8[Tensor, "n h w c"]) -> Found:
        """Features alone: DINOv2 knows no classes."""
        pixels = to_network(_coloured(images), self.model)
        size = (DINOV2_SIZE, DINOV2_SIZE)
        resized = functional.interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp(0, 255) / 255
        mean, std = (torch.tensor(numbers, device=pixels.device)[:, None, None] for numbers in (IMAGENET_MEAN, IMAGENET_STD))
        features: Tensor = self.model(pixel_values=(resized - mean) / std).pooler_output
        return features.float().cpu(), None


def open_extractor(text: str, *, device: torch.device) -> Extractor:
    """The extractor that "classifier:FOLDER", "inception", "inception:FILE", "dinov2" or "dinov2:NAME_OR_FOLDER" means.

    Raises:
        ConfigError: another word, or a network that cannot be loaded.
        CheckpointError: there is no such classifier.
        MissingPackage: a package that the network needs is not installed.
    """
    kind, _, place = text.partition(":")
    if kind == "classifier" and place:
        model, about = load_classifier(Path(place), device=device)
        return ClassifierExtractor(model, test_accuracy=about["test_accuracy"], options=ClassifierOptions(**about["options"]))
    if kind == "inception":
        return InceptionExtractor(Path(place) if place else None, device=device)
    if kind == "dinov2":
        return Dinov2Extractor(place or DINOV2, device=device)
    raise ConfigError(f"Unknown extractor '{text}': {FORM}.")


def inception_weights() -> Path:
    """The published weights in PyTorch's cache, downloaded if they are not there yet.

    Raises:
        ConfigError: they cannot be downloaded.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(INCEPTION_URL, str(file), hash_prefix=INCEPTION_SHA256)
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"The weights of the Inception network cannot be downloaded ({first_line(error)}). Fetch {INCEPTION_URL} "
                "where there is a network, and give extractor=inception:FILE."
            ) from error
    return file


def weights_digest(model: nn.Module) -> str:
    """Checksum of all parameters and buffers of `model` and their names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def to_network(images: UInt8[Tensor, "n h w c"], model: nn.Module) -> Float[Tensor, "n c h w"]:
    """The levels 0..255 as float32, where `model` is."""
    place = next(model.parameters()).device
    return rearrange(images.to(place), "n h w c -> n c h w").float()


def _coloured(images: UInt8[Tensor, "n h w c"]) -> UInt8[Tensor, "n h w c3"]:
    """Grey images in three channels; others as they are."""
    if images.shape[-1] not in (1, 3):
        raise ConfigError(f"This extractor sees images of 1 or 3 channels; got {images.shape[-1]}.")
    return repeat(images, "n h w 1 -> n h w 3") if images.shape[-1] == 1 else images


def _inception_class() -> Any:
    needed = "extractor=inception needs torch-fidelity and torchvision: pip install 'drifting-policy[fid]'"
    if find_spec("torch_fidelity") is None:
        raise MissingPackage(f"{needed}.")
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another PyTorch
        raise MissingPackage(f"{needed} ({first_line(error)}).") from error
    return NoTrainInceptionV3


def _checked_weights(file: Path) -> str:
    """The checksum of a file of weights that holds tensors alone: torch-fidelity itself would run whatever is in it."""
    try:
        torch.load(file, map_location="cpu", weights_only=True, mmap=False)
        return file_sha256(file)
    except pickle.UnpicklingError as error:
        raise ConfigError(f"{file} holds more than tensors. Do not use it.") from error
    except (OSError, RuntimeError, EOFError) as error:
        raise ConfigError(f"The weights {file} cannot be read ({first_line(error)}).") from error
