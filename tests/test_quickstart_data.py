"""The committed shards are what their manifest says, small, complete, and split without leaks."""

import io
import json
import re
from collections import Counter, defaultdict
from functools import cache

import numpy as np
import pytest
from PIL import Image

from ldm.data.module import ShardData
from ldm.data.paths import HOME
from ldm.data.shards import MemberReader, ShardSet
from ldm.data.writing import sha256_of

FOLDER = HOME / "data" / "quickstart"
PROMPTS = [
    "red heart", "blue heart", "grinning face", "alarm clock", "pizza",
    "cat face", "rocket", "soccer ball", "key", "deciduous tree",
]  # fmt: skip
STYLES = {"fluent": 1852, "noto": 1906, "twemoji": 1906}


@cache
def manifest() -> dict:
    return json.loads((FOLDER / "manifest.json").read_text())


@cache
def samples(part: str) -> list[dict]:
    """Key, facts and undecoded members of every sample."""
    shards = ShardSet.open([FOLDER / row["name"] for row in manifest()["splits"][part]["shards"]])
    reader, found = MemberReader(), []
    for index in range(len(shards)):
        shard, place = shards.locate(index)
        members = reader.read(shard, place, shard.extensions)
        found.append({"key": shard.keys[place], "members": members, **json.loads(members["json"])})
    return found


def test_the_manifest_tells_the_truth() -> None:
    total = 0
    for part, facts in manifest()["splits"].items():
        for row in facts["shards"]:
            path = FOLDER / row["name"]
            assert (path.stat().st_size, sha256_of(path)) == (row["bytes"], row["sha256"])
        assert len(samples(part)) == facts["samples"] == sum(row["samples"] for row in facts["shards"])
        assert len({sample["base"] for sample in samples(part)}) == facts["bases"]
        total += facts["samples"]
    assert total == manifest()["samples"] == sum(STYLES.values()) and manifest()["styles"] == STYLES
    assert {path.name for path in FOLDER.glob("*.tar")} == {
        row["name"] for facts in manifest()["splits"].values() for row in facts["shards"]
    }
    # 2.6 kB a sample, of which 1.5 are two headers of the tar and one block of json
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 15e6


def test_every_sample_is_complete() -> None:
    classes = manifest()["class_names"]
    for sample in samples("train") + samples("validation"):
        assert set(sample["members"]) == {"webp", "json"}
        assert sample["key"].startswith(f"{sample['style']}-")
        assert sample["caption"] == sample["caption"].lower().strip() != ""
        assert classes[sample["label"]] == sample["class"] and sample["subclass"] and sample["hexcode"]
        assert all(isinstance(tag, str) for tag in sample["tags"])


def test_every_style_is_complete() -> None:
    everything = samples("train") + samples("validation")
    assert Counter(sample["style"] for sample in everything) == STYLES
    assert len({(sample["style"], sample["hexcode"]) for sample in everything}) == len(everything)
    found = {style: {sample["hexcode"] for sample in everything if sample["style"] == style} for style in STYLES}
    assert found["fluent"] < found["noto"] == found["twemoji"]


def test_the_styles_of_an_emoji_share_all_but_the_picture() -> None:
    facts = defaultdict(list)
    for part in ("train", "validation"):
        for sample in samples(part):
            shared = {key: value for key, value in sample.items() if key not in ("key", "members", "style")}
            facts[sample["hexcode"]].append(shared | {"part": part})
    assert all(row == rows[0] for rows in facts.values() for row in rows)


def test_images_are_of_one_size_and_on_white() -> None:
    edges = []
    for sample in samples("train")[::40] + samples("validation")[::10]:
        image = Image.open(io.BytesIO(sample["members"]["webp"]))
        assert image.size == (64, 64) and image.mode == "RGB"
        pixels = np.asarray(image)
        assert pixels.std() > 5
        edges.append(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).mean())
    assert np.median(edges) > 250  # a few fill their square


def test_no_base_emoji_is_on_both_sides() -> None:
    bases = [{sample["base"] for sample in samples(part)} for part in ("train", "validation")]
    assert not bases[0] & bases[1]
    assert 0.08 < len(samples("validation")) / manifest()["samples"] < 0.12
    assert {sample["class"] for sample in samples("validation")} == set(manifest()["class_names"])


@pytest.mark.parametrize(
    "pattern", [r"^(?:man|woman|person|men|women|people) ", r"^(?:man|woman|person) with .* hair$"]
)
def test_variants_share_a_base(pattern: str) -> None:
    families = defaultdict(set)
    for sample in samples("train") + samples("validation"):
        if re.match(pattern, sample["caption"]):
            families[re.sub(r"^\w+ ", "", sample["caption"])].add(sample["base"])
    assert len(families) > 3 and all(len(bases) == 1 for bases in families.values())


def test_no_picture_is_on_both_sides() -> None:
    def thumbnails(part: str) -> np.ndarray:
        images = [Image.open(io.BytesIO(sample["members"]["webp"])).resize((16, 16)) for sample in samples(part)]
        return np.stack([np.asarray(image, np.float32) for image in images])

    train, validation = thumbnails("train"), thumbnails("validation").reshape(-1, 16 * 16 * 3)
    for other in (train, train[:, :, ::-1]):
        flat = other.reshape(len(other), -1)
        distance = (flat**2).sum(1)[:, None] + (validation**2).sum(1) - 2 * flat @ validation.T
        assert np.sqrt(distance.min() / flat.shape[1]) > 8  # of 255


def test_the_report_prompts_are_trained_on() -> None:
    assert manifest()["pinned_to_train"] == sorted(PROMPTS)
    captions = [sample["caption"] for sample in samples("train")]
    assert all(captions.count(prompt) == len(STYLES) for prompt in PROMPTS)


def test_sources_are_pinned_and_their_licence_is_there() -> None:
    notice = (FOLDER / "NOTICE.txt").read_text()
    for source in manifest()["sources"]:
        assert source["sha256"] in notice and len(source["sha256"]) == 64
    assert "Permission is hereby granted" in notice
    assert "Twemoji, Copyright Twitter, Inc and other contributors, CC-BY 4.0" in notice
    assert "https://creativecommons.org/licenses/by/4.0/" in notice
    assert "Apache License" in (FOLDER / "LICENSE-APACHE-2.0.txt").read_text()


def test_the_module_reads_them() -> None:
    data = ShardData("data/quickstart/train-{00000..00005}.tar", 32, 64, validation="data/quickstart/validation-*.tar")
    assert (data.num_train, data.num_validation) == (len(samples("train")), len(samples("validation")))
    assert sum(len(batch["key"]) for batch in data.validation_loader()) == data.num_validation
    assert data.skipped == []
