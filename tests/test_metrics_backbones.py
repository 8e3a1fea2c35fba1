"""Metrics that see images: reconstruction errors, feature networks, CLIP and alignment scores."""

import hashlib
import io
import json
import math
import os
import shutil
import tarfile
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchvision.models import vgg16
from torchvision.transforms.functional import pil_to_tensor

from ldm.config import CONF
from ldm.errors import UserError
from ldm.metrics.alignment_score import HEADS, AlignmentHeads, AlignmentScore, alignment_score, sentence_encoder
from ldm.metrics.clip_score import _check_activation, open_clip_score
from ldm.metrics.features import EfficientNetFeatures, efficientnet_features, inception_features, vgg16_features
from ldm.metrics.quality import sample_quality
from ldm.metrics.reconstruction import psnr, reconstruction_errors, ssim
from ldm.networks.efficientnet import EfficientNetLite0
from ldm.networks.lpips import pretrained_lpips

GOLDEN_CLASSES, GOLDEN_LOGIT = [644, 604, 615], 2.5442
QUICKSTART = Path(__file__).parents[1] / "data" / "quickstart"


def images(n, size=32, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_classes_are_those_of_32_bits_whatever_the_autocast():
    backbone = EfficientNetFeatures(EfficientNetLite0().eval())
    features = torch.randn(4, backbone.dim, generator=torch.Generator().manual_seed(0))
    expected = backbone.classify(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(backbone.classify(features), expected)


# ------------------------------------------------------------------------------------------------ reconstruction


def test_psnr_and_ssim_by_hand_and_per_image():
    target = images(3)
    noisy = target.clone()
    noisy[1] += 0.1
    noisy[2] += 0.2
    found = psnr(noisy, target)
    assert found[0] == math.inf
    assert found[1:].tolist() == pytest.approx([10 * math.log10(4 / 0.01), 10 * math.log10(4 / 0.04)], rel=1e-4)
    assert ssim(target, target).tolist() == pytest.approx([1, 1, 1])
    assert ssim(images(3, seed=1), target).max() < 0.2


def test_reconstruction_errors_are_per_image_and_named():
    target = images(2)
    table = reconstruction_errors(torch.stack([target[0], target[1] * 0.5]), target, pretrained_lpips("alex"))
    assert set(table) == {"psnr", "ssim", "l1", "lpips_alex"}
    assert all(values.shape == (2,) for values in table.values())
    assert table["l1"][0] == table["lpips_alex"][0] == 0
    assert table["l1"][1].item() == pytest.approx(0.5 * target[1].abs().mean().item(), rel=1e-5)


# ------------------------------------------------------------------------------------------------ features


@pytest.fixture(scope="module")
def efficientnet():
    return efficientnet_features()


def test_efficientnet_features_are_frozen_named_and_independent_of_the_batch(efficientnet):
    assert (efficientnet.name, efficientnet.dim, efficientnet.frechet) == ("efficientnet_lite0@128", 1280, "fd")
    x = images(3)
    features = efficientnet(x)
    assert features.shape == (3, 1280) and features.dtype == torch.float32 and features.min() >= 0
    assert torch.allclose(efficientnet(x[1:2]), features[1:2], atol=1e-4)
    nn.ModuleList([efficientnet]).train()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(efficientnet(x), features, atol=1e-4)  # neither train() nor autocast reaches it
    assert not any(p.requires_grad for p in efficientnet.parameters())


def test_efficientnet_classifies_a_flat_image_as_its_published_weights_do(efficientnet):
    """Golden values of efficientnet-lite-pytorch 0.1.0 with the same weights, 128 px."""
    ramp = torch.linspace(-1, 1, 128).expand(1, 3, 128, 128)
    logits = efficientnet.classify(efficientnet(ramp))
    assert logits.topk(3).indices[0].tolist() == GOLDEN_CLASSES
    assert logits.max().item() == pytest.approx(GOLDEN_LOGIT, abs=1e-3)


@torch.no_grad()
def test_folding_the_norms_keeps_the_map_at_any_size():
    network = EfficientNetLite0()
    for value in network.buffers():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5)
    x = images(1, 65)
    before = network(x)
    assert torch.allclose(network.fold()(x), before, rtol=1e-4, atol=1e-4)
    assert not any(p.requires_grad for p in network.parameters())


def test_sample_quality_names_the_backbone(efficientnet):
    real, fake = efficientnet(images(12)), efficientnet(images(12, seed=1) * 0.2)
    with pytest.warns(UserWarning, match="biased"):
        table = sample_quality(real, fake, efficientnet, torch.Generator().manual_seed(0))
    metrics = ("fd", "kid", "kid_std", "precision", "recall", "is")
    assert set(table) == {f"{metric}/efficientnet_lite0@128" for metric in metrics}
    assert table["kid/efficientnet_lite0@128"] > 0 and table["recall/efficientnet_lite0@128"] == 0


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("/tmp/ldm-test-inception-bomb",)


def test_inception_loads_a_local_file_without_running_it(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:  # its constructor insists on loading; a seeded random one is enough here
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        patch.setattr(torch, "load", lambda *_, **__: None)
        torch.save(FeatureExtractorInceptionV3("x", ["2048"], "x").state_dict(), tmp_path / "inception.pth")
    features = inception_features(tmp_path / "inception.pth")
    found = features(images(2))
    assert (features.name, features.frechet) == ("inception_v3", "fid") and found.shape == (2, features.dim)
    assert features.classify(found).shape == (2, 1008)
    with pytest.raises(ValueError, match="no Inception weights"):
        inception_features(tmp_path / "absent.pth")
    torch.save({"a": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match="cannot be read"):
        inception_features(tmp_path / "bomb.pth")
    assert not os.path.exists("/tmp/ldm-test-inception-bomb")


def test_vgg16_is_torchvisions_without_its_last_layer(tmp_path):
    network = vgg16().eval()
    save_file(network.state_dict(), tmp_path / "vgg16.safetensors")
    features = vgg16_features(tmp_path / "vgg16.safetensors")
    x = images(2, 224)
    normal = (x + 1) / 2 - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    found = features(x)
    assert (features.name, found.shape) == ("vgg16", (2, features.dim)) and not found.requires_grad
    with torch.no_grad():
        expected = network(normal / torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
    torch.testing.assert_close(features.classify(found), expected)
    assert features(images(1, 40)).shape == (1, features.dim), "of any size"
    with pytest.raises(UserError, match=r"no VGG16 weights at .*vgg16-397923af\.pth"):
        vgg16_features(tmp_path / "absent.pth")
    save_file({"features.0.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="cannot be read as weights of VGG16"):
        vgg16_features(tmp_path / "other.safetensors")


# ------------------------------------------------------------------------------------------------ CLIP score

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def test_clip_score_is_the_cosine_of_a_local_model(tmp_path):
    (tmp_path / "tiny-clip.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    network = open_clip.create_model("tiny-clip")
    torch.save(network.state_dict(), tmp_path / "mine.pt")
    score = open_clip_score("tiny-clip", str(tmp_path / "mine.pt"))
    assert score.name == "tiny-clip:mine"
    x, captions = images(2, 48), ["a red fox", "a key"]
    found = score(x, captions)
    assert found.shape == (2,) and found.abs().max() <= 1
    expected = [score(x[i : i + 1], captions[i : i + 1]).item() for i in range(2)]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match=r"is neither a file .* nor a tag"):
        open_clip_score("tiny-clip", str(tmp_path / "absent.pt"))


def test_weights_of_quickgelu_are_refused_under_the_architecture_that_has_gelu():
    pairs = open_clip.list_pretrained()
    quick = [pair for pair in pairs if open_clip.get_pretrained_cfg(*pair).get("quick_gelu")]
    other = [(name, tag) for name, tag in quick if not open_clip.get_model_config(name).get("quick_gelu")]
    assert ("ViT-L-14", "openai") in other
    for name, tag in other:
        with pytest.raises(UserError, match=rf"weights='{tag}': .*QuickGELU.*take model={name}-quickgelu"):
            open_clip_score(name, tag)
        assert (f"{name}-quickgelu", tag) in quick
    fits = set(pairs) - set(other)
    for name, tag in fits:
        _check_activation(name, tag)
    assert aesthetic_model() in fits


def test_weights_in_a_file_see_the_pixels_of_their_tag(tmp_path, monkeypatch):
    (tmp_path / "tiny-clip.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    torch.save(open_clip.create_model("tiny-clip").state_dict(), tmp_path / "mine.pt")
    shutil.copyfile(tmp_path / "mine.pt", tmp_path / "Two-b32.pt")
    plain = open_clip.get_pretrained_cfg("ViT-B-32", "laion2b_s34b_b79k")
    halves = {**plain, "mean": (0.5,) * 3, "std": (0.25,) * 3, "interpolation": "bilinear"}
    tags = {"one": plain, "two_b32": halves, "quick": {**halves, "quick_gelu": True}}

    def seen(name: str, **known: dict) -> list:
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-clip", known)
        score = open_clip_score("tiny-clip", str(tmp_path / name))
        return [score.mean[0, 0].item(), score.std[0, 0].item(), score.interpolation]

    expected = [plain["mean"][0], plain["std"][0], "bicubic"]
    assert seen("mine.pt", one=plain, quick=tags["quick"]) == pytest.approx(expected)
    assert seen("mine.pt", two_b32=halves) == seen("Two-b32.pt", **tags) == [0.5, 0.25, "bilinear"]
    with pytest.raises(UserError, match=r"mine\.pt: .*let the file's name begin with its tag: one, two_b32$"):
        seen("mine.pt", **tags)


def aesthetic_model() -> tuple[str, str]:
    """The architecture and the tag of conf/aesthetic/laion.yaml."""
    own = yaml.safe_load((CONF / "aesthetic" / "laion.yaml").read_text())
    return own["model"], own["weights"]


# ------------------------------------------------------------------------------------------------ alignment score


class Lookup(nn.Module):
    """Stands in for both encoders: an image is its own mean colour, a caption the vector of its name."""

    name, vectors = "toy", {"red": (1.0, 0, 0), "green": (0, 1.0, 0), "blue": (0, 0, 1.0), "yellow": (1.0, 1.0, 0)}

    def forward(self, x):
        return x.mean((2, 3)) if torch.is_tensor(x) else torch.tensor([self.vectors[caption] for caption in x])


def test_alignment_ranks_its_caption_among_different_ones():
    heads = AlignmentHeads(3, 3, 3)
    for linear in (heads.image, heads.text):
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    score = AlignmentScore(Lookup(), Lookup(), heads)
    red = torch.tensor([1.0, 0.1, 0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    batch = torch.cat([red, red, red])
    captions = ["red", "yellow", "blue"]
    everything = ["red", "green", "blue", "yellow", "red", "red"]  # repeats count once
    assert score.rank(batch, captions, everything).tolist() == [1, 2, 4]
    assert score.rank(batch, captions, ["green"]).tolist() == [1, 1, 2]
    assert score(batch, captions)[0].item() == pytest.approx(1 / math.sqrt(1.01))


def test_sentence_embeddings_do_not_depend_on_padding_and_know_meaning():
    encode = sentence_encoder()
    dog, puppy, rocket = encode(["a photo of a dog", "a puppy", "a rocket that flies into the night sky"])
    assert torch.allclose(encode(["a puppy"])[0], puppy, atol=1e-5)
    cosine = torch.cosine_similarity
    assert cosine(dog, puppy, dim=0) > 0.5 > 0.3 > cosine(dog, rocket, dim=0)


def test_the_committed_heads_are_small_and_state_their_recall():
    assert HEADS.stat().st_size < 2e6
    with safe_open(HEADS, "pt") as file:
        facts = json.loads(file.metadata()["facts"])
    chance = 1 / facts["validation_captions"]
    assert facts["r_at_1"] > 15 * chance and facts["r_at_1_32px"] > 15 * chance
    # Made from the very shards that are committed: with others, a validation sample might have been seen.
    fingerprint = hashlib.sha256()
    for shard in sorted(QUICKSTART.glob("train-*.tar")):
        fingerprint.update(hashlib.sha256(shard.read_bytes()).digest())
    assert facts["data_sha256"] == fingerprint.hexdigest() and facts["split"] == "train"


def test_alignment_score_recognises_shrunk_pictures():
    with tarfile.open(QUICKSTART / "train-00000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    captions = [json.loads(members[name])["caption"] for name in sorted(members) if name.endswith(".json")]
    pictures = [members[name] for name in sorted(members) if name.endswith(".webp")][:16]
    x = torch.stack([pil_to_tensor(Image.open(io.BytesIO(data)).convert("RGB")) for data in pictures]) / 127.5 - 1
    x = F.interpolate(x, (32, 32), mode="bicubic", antialias=True).clamp(-1, 1)
    score = alignment_score()
    assert score.name == "efficientnet_lite0@128+minilm"
    assert (score.rank(x, captions[:16], captions) == 1).float().mean() > 0.7
    assert (score(x, captions[:16]) - score(x, captions[16:32])).mean() > 0.3


def test_a_size_that_no_image_has_is_refused(efficientnet):
    with pytest.raises(ValueError, match=r"metric\.size=0: .*at least 1"):
        EfficientNetFeatures(efficientnet.network, size=0)
