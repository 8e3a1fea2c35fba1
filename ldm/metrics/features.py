"""Image features for set distances (FD, KID, precision and recall, Inception score), each with its backbone's name.

FID in the literature's sense needs the Inception network of 2015, whose weights come from a local path.
EfficientNet-lite0 stands in where there are none: its numbers compare runs with each other, never with papers.
"""

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchvision.models import VGG, vgg16

from ldm.errors import UserError
from ldm.metrics import resize as ways
from ldm.networks.efficientnet import EfficientNetLite0, pretrained_efficientnet

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INCEPTION_SIZE, VGG_SIZE = 299, 224  # px
INCEPTION_LAYERS = (
    "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2",
    "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7a",
    "Mixed_7b", "Mixed_7c", "AvgPool",
)  # fmt: skip


class Features(nn.Module, ABC):
    """Frozen network from images to vectors; `name` goes beside every number, `frechet` is what its FD is called."""

    name: str
    dim: int
    frechet: str

    @property
    def digest(self) -> str:
        """SHA-256 over the weights' shapes and values, whatever file they came from and wherever they lie."""
        found = hashlib.sha256()
        for _, tensor in sorted(self.state_dict().items()):
            found.update(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
            found.update(tensor.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    def train(self, mode: bool = True) -> "Features":
        """Stays in evaluation mode: a parent's train() must not switch the batch norms."""
        return super().train(False)

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Features [B, dim] of images [B, 3, H, W] in [-1, 1], in fp32 whatever the autocast."""

    @abstractmethod
    def classify(self, features: Tensor) -> Tensor:
        """Class logits [B, classes] of features [B, dim], in fp32 whatever the autocast."""


class EfficientNetFeatures(Features):
    """Pooled last features of EfficientNet-lite0, images resized to `size` px: bicubic, or `clean`.

    Raises UserError for a size that is none.
    """

    def __init__(
        self, network: EfficientNetLite0, size: int = 128, resize: Literal["bicubic", "clean"] = "bicubic"
    ) -> None:
        super().__init__()
        if size < 1:
            raise UserError(f"metric.size={size}: images are resized to so many px, at least 1")
        # Depthwise convolutions on CPU run about 1.4 times faster channels-last.
        self.network, self.size = network.to(memory_format=torch.channels_last), size
        self.resize = {"bicubic": ways.bicubic, "clean": ways.clean_signed}[resize]
        self.name = f"efficientnet_lite0@{size}{'' if resize == 'bicubic' else f':{resize}'}"
        self.dim, self.frechet = 1280, "fd"
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            images = (self.resize(images.float(), self.size) + 1) / 2
            normalised = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
            return self.network.features(normalised)

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return self.network.classifier(features)


class InceptionFeatures(Features):
    """Pool features of the TensorFlow Inception of 2015 by torch-fidelity, with its 8 bit input.

    Images are resized as TensorFlow 1 does it, or as clean-fid does.
    """

    def __init__(
        self, network: FeatureExtractorInceptionV3, resize: Literal["tensorflow", "clean"] = "tensorflow"
    ) -> None:
        super().__init__()
        self.network = network
        self.resize = {"tensorflow": ways.tensorflow, "clean": ways.clean}[resize]
        self.name = f"inception_v3{'' if resize == 'tensorflow' else f':{resize}'}"
        self.dim, self.frechet = 2048, "fid"

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            x = (self.resize(images.float(), INCEPTION_SIZE) - 128) / 128  # [B, 3, 299, 299]
            for layer in INCEPTION_LAYERS:  # torch-fidelity's forward resizes in its own way
                x = getattr(self.network, layer)(x)
            return x.flatten(1)

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return features @ self.network.fc.weight.T  # without the bias, as the published Inception score does


class Vgg16Features(Features):
    """The 4,096 values behind the second fully connected layer of torchvision's VGG16, images resized to 224 px.

    They are the features of improved precision and recall (arXiv 1904.06991).
    """

    def __init__(self, network: VGG) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.name, self.dim, self.frechet = "vgg16", 4096, "fd"
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            images = (ways.bicubic(images.float(), VGG_SIZE) + 1) / 2
            maps = self.network.features((images - self.mean) / self.std)  # [B, 512, 7, 7]
            return self.network.classifier[:-1](maps.flatten(1))

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return self.network.classifier[-1](features)


def efficientnet_features(
    size: int = 128, path: str | Path | None = None, resize: Literal["bicubic", "clean"] = "bicubic"
) -> EfficientNetFeatures:
    """EfficientNet-lite0 features with the published weights, from `path` or the cache."""
    return EfficientNetFeatures(pretrained_efficientnet(path), size, resize)


def inception_features(path: str | Path, resize: Literal["tensorflow", "clean"] = "tensorflow") -> InceptionFeatures:
    """FID's Inception from a local copy of weights-inception-2015-12-05-6726825d.pth (or its safetensors)."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(
            f"no Inception weights at {path}: FID needs weights-inception-2015-12-05-6726825d.pth of "
            "torch-fidelity's release v0.2.0; download it and give its path, or use efficientnet_features"
        )
    with _reading(path, "Inception"):
        # torch-fidelity unpickles its file without restriction, so it only ever sees a copy that we wrote ourselves.
        copy = io.BytesIO()
        torch.save(_weights(path), copy)
        copy.seek(0)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], copy)
    return InceptionFeatures(network, resize)


def vgg16_features(path: str | Path) -> Vgg16Features:
    """VGG16's from a local copy of torchvision's vgg16-397923af.pth (or its safetensors)."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(
            f"no VGG16 weights at {path}: download vgg16-397923af.pth of torchvision and give its path, "
            "or use efficientnet_features"
        )
    with torch.device("meta"):
        network = vgg16()
    with _reading(path, "VGG16"):
        network.load_state_dict(_weights(path), assign=True)
    return Vgg16Features(network.float())


def _weights(path: Path) -> dict[str, Tensor]:
    """Of a safetensors file, or of a pickled one, whose code is not run."""
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


@contextmanager
def _reading(path: Path, network: str) -> Iterator[None]:
    """What the file at `path` cannot be read for becomes a UserError."""
    try:
        yield
    except (UnpicklingError, SafetensorError, RuntimeError, TypeError, OSError) as error:
        raise UserError(f"{path} cannot be read as weights of {network}: {str(error).splitlines()[0]}") from error


class FeatureBank(Metric):
    """Collects features of a sample set over batches and ranks; each sample counts once, by its number."""

    full_state_update = False
    features: list[Tensor]
    numbers: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("features", [], dist_reduce_fx="cat")
        self.add_state("numbers", [], dist_reduce_fx="cat")

    def update(self, features: Tensor, numbers: Tensor) -> None:
        """Add features [B, dim] of the samples numbered `numbers` [B]."""
        self.features.append(features)
        self.numbers.append(numbers)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Features [N, dim] and numbers [N], in the order of the numbers, so that no result depends on the ranks."""
        numbers, order = torch.sort(dim_zero_cat(self.numbers), stable=True)
        first = torch.ones_like(numbers, dtype=torch.bool)
        first[1:] = numbers[1:] != numbers[:-1]  # samplers pad the last batch of a rank with repeats
        return dim_zero_cat(self.features)[order[first]], numbers[first]
