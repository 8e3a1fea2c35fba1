"""CLIP's image embedding: that of transformers; zero where dropped, or where who samples gives no style."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from toys import clip_image_folder
from untrained import untrained_run

from ldm.build import Parts
from ldm.conditioners.clip_image import ImageEncoder, clip_image, preprocess
from ldm.conditioners.image_features import _load, image_features
from ldm.config import compose, load_tree, overriding
from ldm.data.writing import write_shard
from ldm.latent_cache import encode
from ldm.measuring import conditions
from ldm.networks.bounded import check_described
from sample import main

IMAGE = torch.rand(3, 3, 20, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
KEEP = torch.zeros(3, dtype=torch.bool)


def make(**given):
    return clip_image(str(clip_image_folder()), **given)


def smooth(height: int, width: int) -> np.ndarray:
    """Pixels that survive being rounded to 8 bits between resizes, uint8 [H, W, 3]."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    return np.stack([255 * x, 255 * y, 127 + 120 * np.sin(5 * x)], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 48), (40, 60)])
def test_embeddings_are_those_of_transformers_own_preprocessing(height: int, width: int):
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    pixels = smooth(height, width)
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    theirs = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    torch.testing.assert_close(preprocess(image, 16), theirs, rtol=0, atol=0.03)  # they round to 8 bits, 0.015 each
    model = CLIPVisionModelWithProjection.from_pretrained(clip_image_folder()).eval()
    with torch.no_grad():
        expected = model(pixel_values=theirs).image_embeds
        same = model(pixel_values=preprocess(image, 16)).image_embeds
    vector = make()({"style": image}, KEEP[:1])["vector"]
    assert torch.equal(vector, same)
    assert (vector - expected).norm() < 0.01 * expected.norm()


def test_a_style_is_embedded_from_its_original_file_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In training, evaluate.py, a cache and sample.py: as CLIP's own preprocessing of the file, whatever image_size."""
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    files = [tmp_path / "0.png", tmp_path / "1.png"]
    for file, pixels in zip(files, (smooth(40, 60), 255 - smooth(48, 48)), strict=True):
        Image.fromarray(pixels).save(file)
    write_shard(tmp_path / "train-0.tar", [{"__key__": file.stem, "png": file.read_bytes()} for file in files])
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    theirs = processor([Image.open(file) for file in files], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        own = (
            CLIPVisionModelWithProjection.from_pretrained(clip_image_folder()).eval()(pixel_values=theirs).image_embeds
        )
    chosen = ["conditioner=[clip_image]", f"conditioner.clip_image.path={clip_image_folder()}", "derived=[style]",
              "derived.style.size=16", "data=image_shards", f"data.train={tmp_path}/train-0.tar", "data.num_workers=0",
              "data.batch_size=2", "data.horizontal_flip_prob=0"]  # fmt: skip
    model = untrained_run(tmp_path / "model", *chosen, "network.channels=8")
    data, encoder = Parts(load_tree(model / "config.yaml"))["data"], make().frozen
    data.setup()
    encode(compose("encode", [*chosen, "image_size=8", f"out={tmp_path}/cache", "precision=fp32", "device=cpu"]))
    [cached] = (tmp_path / "cache").glob("*.safetensors")
    seen = []
    plain = ImageEncoder.encode
    monkeypatch.setattr(ImageEncoder, "encode", lambda *given: seen.append(plain(*given)) or seen[-1])
    for batch in (next(iter(data.train_loader())), next(conditions(data, 2, 2))[0]):
        order = [int(key) for key in batch["key"]]
        encoder.encode(batch, torch.device("cpu"))
        assert batch["image"].shape[-1] == 8 and close(seen[-1]["embedding"], own[order])
    assert close(load_file(cached)[f"image.{encoder.digest}.embedding"], own)
    for file, expected in zip(files, own, strict=True):
        main([f"model={model}", f"style={file}", "num_images=1", "guidance.scale=1", f"out={tmp_path}/out"])
        assert close(seen[-1]["embedding"], expected[None])


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.shape == expected.shape and bool(((found - expected).norm(dim=1) < 0.01 * expected.norm(dim=1)).all())


def test_packaged_features_stand_in_for_clip_in_the_same_slots():
    conditioner = image_features(slots=["vector", "tokens"], width=5, size=32)
    kept, null = conditioner({"style": IMAGE}, KEEP), conditioner({}, ~KEEP)
    assert kept["vector"].shape == (3, 1280) and kept["tokens"].shape == (3, 1, 5)
    torch.testing.assert_close(kept["vector"].std(1, correction=0), torch.ones(3), rtol=0.01, atol=0)
    assert not null["vector"].any() and not null["tokens"].any()
    assert set(conditioner.state_dict()) == {"project.weight"} and conditioner.frozen.digest != make().frozen.digest
    with pytest.raises(ValueError, match="image_features needs 'style'"):
        conditioner({"caption": ["a"] * 3}, KEEP)


def test_slots_and_nulls():
    conditioner, token = make(), make(slots=["tokens"])
    kept, null = conditioner({"style": IMAGE}, KEEP)["vector"], conditioner({}, ~KEEP)["vector"]
    assert kept.shape == (3, 6) == (3, conditioner.widths["vector"]) and kept.any(1).all() and not null.any()
    mixed = conditioner({"style": IMAGE}, torch.tensor([False, True, False]))["vector"]
    assert torch.equal(mixed[[0, 2]], kept[[0, 2]]) and not mixed[1].any()
    assert torch.equal(token({"style": IMAGE}, KEEP)["tokens"], kept[:, None])
    both = make(slots=["vector", "tokens"], width=5)({"style": IMAGE}, KEEP)
    assert torch.equal(both["vector"], kept) and both["tokens"].shape == (3, 1, 5)
    assert not conditioner.state_dict() and not list(conditioner.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conditioner({"style": IMAGE}, KEEP)["vector"], kept)


def test_training_without_images_is_refused():
    with pytest.raises(ValueError, match="clip_image needs 'style'"):
        make()({"caption": ["a"] * 3}, KEEP)


def test_it_is_sampled_with_a_style_or_without(tmp_path: Path):
    given = ("conditioner=[clip_image]", f"conditioner.clip_image.path={clip_image_folder()}", "derived=[style]")
    model = untrained_run(tmp_path / "model", *given, "network.channels=8")
    Image.fromarray(smooth(20, 30)).save(tmp_path / "a, b.png")
    Image.fromarray(255 - smooth(20, 30)).save(tmp_path / "other.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")

    def drawn(name: str, *words: str) -> np.ndarray:
        assert (
            main(overriding([f"model={model}", "num_images=1", "guidance.scale=1", f"out={tmp_path / name}", *words]))
            == 0
        )
        return np.asarray(Image.open(tmp_path / name / "grid.png")).astype(int)

    style = f"given.style={tmp_path}/a, b.png"
    without, one, other = drawn("0"), drawn("1", style), drawn("2", f"given.style={tmp_path}/other.png")
    assert np.array_equal(without, drawn("3", style, "guidance.scale=0")), "the null"
    assert not np.array_equal(one, without) and not np.array_equal(one, other)
    assert np.array_equal(one, drawn("7", f"style={tmp_path}/a, b.png")), "the short key"
    assert np.array_equal(one, drawn("4", f"image={tmp_path}/a, b.png")), "what is made of an image is made of it"
    with pytest.raises(ValueError, match=r"given\.style=.*broken\.png: "):
        drawn("5", f"given.style={tmp_path}/broken.png")
    labelled = untrained_run(tmp_path / "labelled")
    with pytest.raises(ValueError, match="image: this model reads no image; it is conditioned on label"):
        main([f"model={labelled}", "label=1", f"image={tmp_path}/other.png", f"out={tmp_path}/6"])


def test_the_network_of_features_is_whole_while_a_model_is_counted():
    _load.cache_clear()
    check_described(lambda: image_features(size=32), {}, "config.yaml")
    assert next(image_features(size=32).frozen.model.module.parameters()).device.type == "cpu"
