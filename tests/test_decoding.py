"""Decoding is safe and true to the eye, whatever the format and whichever decoder gives the training size."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from test_label_images import png

from ldm.data import decoding
from ldm.data.decoding import FastDecoder, PilDecoder, decode_image
from ldm.data.errors import BadSample
from ldm.data.label_images import decode_mask, decode_opacity
from ldm.data.transforms import fitted


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(height: int = 24, width: int = 36) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 255 / height, columns * 255 / width, 128 + 0 * rows], axis=-1).astype(np.uint8)


# -- decoding ------------------------------------------------------------------------------------------------------


def test_lossless_formats_give_the_stored_pixels() -> None:
    pixels = gradient()
    for content in (encoded(Image.fromarray(pixels)), encoded(Image.fromarray(pixels), "WEBP", lossless=True)):
        assert (np.asarray(decode_image(content)) == pixels).all()


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1"])
def test_other_colour_models_become_rgb(mode: str) -> None:
    image = Image.fromarray(gradient()).convert(mode)
    decoded = decode_image(
        encoded(image, "JPEG" if mode == "CMYK" else "PNG", **({"quality": 95} if mode == "CMYK" else {}))
    )
    assert decoded.mode == "RGB"
    difference = np.asarray(decoded, np.float32) - np.asarray(image.convert("RGB"), np.float32)
    assert np.abs(difference).mean() < 3


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    decoded = np.asarray(decode_image(encoded(Image.fromarray(deep))))
    assert np.abs(decoded[..., 0].astype(float) - deep / 257).max() <= 0.5
    assert (decode_mask(encoded(Image.fromarray(deep))).values == (deep > 32767)).all()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.linspace(0, 1, 64, dtype=np.float32), "fractions"),  # black all over, by Pillow's conversion
        (np.linspace(0, 255, 64, dtype=np.float32), "fractions"),
        (np.linspace(0, 2**31 - 1, 64).astype(np.int32), "0 to 2147483647"),
        (np.linspace(-32768, 32767, 64).astype(np.int32), "-32768 to 32767"),
    ],
)
def test_numbers_whose_white_is_not_known_are_no_picture(values: np.ndarray, said: str) -> None:
    content = encoded(Image.fromarray(values.reshape(8, 8)), "TIFF")
    for read in (decode_image, lambda content: PilDecoder()(content, 8), lambda content: PilDecoder()(content, 4)):
        with pytest.raises(BadSample, match=f"{said}.*; save it with 8 bits, or with 16"):
            read(content)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_signed_numbers_are_no_picture(kind: type) -> None:
    content = encoded(Image.fromarray(np.arange(64, dtype=kind).reshape(8, 8)), "TIFF", tiffinfo={339: 2})
    assert Image.open(io.BytesIO(content)).tag_v2[339] == (2,)
    for read in (decode_image, lambda content: PilDecoder()(content, 8), lambda content: PilDecoder()(content, 4)):
        with pytest.raises(BadSample, match="signed, of which none is known to be white; save it with 8 bits"):
            read(content)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((10, 10, 10, 255), (0, 0, 4, 8))
    decoded = np.asarray(decode_image(encoded(image.convert(mode))))
    assert (decoded[:, 4:] == 255).all() and (decoded[:, :4] <= 12).all()


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_grey_that_a_png_calls_transparent_lies_on_white(depth: int) -> None:
    grey = np.arange(64).reshape(8, 8) % (1 << depth)
    top = (1 << depth) - 1
    for cut in (0, 1):  # 1 of 16 bits is black, too
        content = png(grey, depth, transparent=[cut])
        expected = np.where(grey == cut, 255, np.round(grey * 255 / top))
        assert (np.asarray(decode_image(content))[..., 0] == expected).all()
        assert (decode_opacity(content).values == (grey != cut)).all()


def test_a_transparent_colour_of_16_bits_is_refused() -> None:
    colours = np.arange(192).reshape(8, 8, 3)
    for read in (decode_image, decode_opacity, lambda content: PilDecoder()(content, 8)):
        with pytest.raises(BadSample, match="one colour of 16 bits is called transparent"):
            read(png(colours * 256, 16, 2, transparent=[256, 512, 768]))
    assert np.asarray(decode_image(png(colours, 8, 2, transparent=[3, 4, 5])))[0, 1].tolist() == [255] * 3


def test_photographs_stand_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    pixels = gradient()
    content = encoded(Image.fromarray(pixels), "JPEG", quality=100, subsampling=0, exif=exif)
    decoded = np.asarray(decode_image(content), np.float32)
    assert np.abs(decoded - np.rot90(pixels, -1)).mean() < 2


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert np.asarray(decode_image(content))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_images_are_bad_samples(kind: str) -> None:
    content = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)), kind)
    for broken in (content[: len(content) // 2], content[:20], b"", b"not an image", b"\0" * 100):
        with pytest.raises(BadSample) as caught:
            decode_image(broken)
        assert caught.value.kind == "broken image"


def test_other_formats_are_not_even_tried() -> None:
    with pytest.raises(BadSample, match=r"not a JPEG, .* begins with 'P6"):
        decode_image(encoded(Image.new("RGB", (4, 4)), "PPM"))


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "GIF", "AVIF"])
def test_other_formats_give_their_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], kind, **({} if kind == "BMP" else {"save_all": True, "append_images": frames[1:]}))
    assert np.abs(np.asarray(decode_image(content)).astype(int) - (255, 0, 0)).max() <= 3


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    for side in (9000, 60000):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
        with pytest.raises(BadSample) as caught:
            decode_image(bomb)
        assert caught.value.kind == "too many pixels"


# -- decoders ------------------------------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize("decoder", [PilDecoder(), FastDecoder()], ids=["pil", "fast"])
# Mean and largest absolute difference, of 255, that reducing a JPEG while it is decoded may make.
BOUNDS = {PilDecoder: (1.5, 12), FastDecoder: (4.0, 26)}


def photograph(height: int, width: int) -> Image.Image:
    """Structure at all scales, with a spectrum of 1/f and little colour, as photographs have."""
    generator = np.random.default_rng(0)
    rows, columns = np.fft.fftfreq(height)[:, None, None], np.fft.fftfreq(width)[:, None]
    fall = 1 / np.maximum(np.hypot(rows, columns), 1 / max(height, width))
    noise = np.fft.fft2(generator.standard_normal((height, width, 3)), axes=(0, 1))
    field = np.fft.ifft2(noise * fall, axes=(0, 1)).real
    field = 0.8 * field.mean(-1, keepdims=True) + 0.2 * field
    return Image.fromarray(np.clip(128 + 50 * field / field.std(), 0, 255).astype(np.uint8))


def in_full(content: bytes, image_size: int, mode: Image.Resampling = Image.Resampling.BICUBIC) -> np.ndarray:
    """Every pixel decoded, then an antialiased resize; int16."""
    image = decode_image(content)
    return np.asarray(image.resize(fitted(*image.size, image_size), mode), dtype=np.int16)


@BOTH
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize(("height", "width"), [(512, 512), (500, 751), (333, 1001), (1024, 771)])
@pytest.mark.parametrize("image_size", [32, 64, 256, 300])
def test_a_reduced_jpeg_is_a_full_decode_within_a_bound(decoder, subsampling, height, width, image_size) -> None:
    content = encoded(photograph(height, width), "JPEG", quality=90, subsampling=subsampling)
    found, expected = decoder(content, image_size), in_full(content, image_size)
    assert found.shape == expected.shape and found.dtype == np.uint8
    difference = np.abs(found - expected)
    mean, largest = BOUNDS[type(decoder)]
    assert difference.mean() <= mean and difference.max() <= largest
    bilinear = np.abs(in_full(content, image_size, Image.Resampling.BILINEAR) - expected)
    assert difference.mean() <= 1.25 * bilinear.mean()


@BOTH
def test_what_is_reduced_stays_in_its_place(decoder) -> None:
    # the last column of a reduced JPEG stands for one pixel of eight: the scale must not count it as whole
    ramp = np.repeat(np.linspace(0, 255, 1001)[None, :, None], 333, 0).repeat(3, 2).round().astype(np.uint8)
    content = encoded(Image.fromarray(ramp), "JPEG", quality=100)
    assert np.abs(decoder(content, 40) - in_full(content, 40)).max() <= 2


@BOTH
@pytest.mark.parametrize("image_size", [8, 24, 40])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_photographs_stand_upright(decoder, orientation: int, image_size: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(gradient(192, 288)), "JPEG", quality=100, subsampling=0, exif=exif)
    found, expected = decoder(content, image_size), in_full(content, image_size)
    assert found.shape == expected.shape and np.abs(found - expected).max() <= 3


@BOTH
def test_a_reduced_cmyk_jpeg_is_the_whole_picture(decoder) -> None:
    # simplejpeg does not take it, and Pillow's draft changes the size that the scales are reckoned from
    content = encoded(photograph(300, 400).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decoder(content, 32) - in_full(content, 32)).mean() < 4


KINDS = {
    "png": lambda: encoded(photograph(90, 120)),
    "webp": lambda: encoded(photograph(90, 120), "WEBP", quality=80),
    "grey jpeg": lambda: encoded(photograph(90, 120).convert("L"), "JPEG"),
    "cmyk jpeg": lambda: encoded(photograph(90, 120).convert("CMYK"), "JPEG"),
    "progressive jpeg": lambda: encoded(photograph(90, 120), "JPEG", progressive=True),
    "palette": lambda: encoded(photograph(90, 120).convert("P")),
    "transparent": lambda: encoded(photograph(90, 120).convert("RGBA")),
    "sixteen bit": lambda: encoded(Image.fromarray(np.linspace(0, 65535, 10800).astype(np.uint16).reshape(90, 120))),
    "animation": lambda: encoded(photograph(90, 120), save_all=True, append_images=[Image.new("RGB", (120, 90))]),
    "trailing bytes": lambda: encoded(photograph(90, 120), "JPEG") + bytes(100),
    "bytes before a marker": lambda: encoded(photograph(90, 120), "JPEG").replace(b"\xff\xda", b"\0\0\xff\xda", 1),
}  # fmt: skip


@pytest.mark.parametrize("image_size", [60, 90, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_both_decoders_take_the_same_files_and_give_the_same_picture(kind: str, image_size: int) -> None:
    content = KINDS[kind]()
    full = in_full(content, image_size)
    assert (PilDecoder()(content, image_size) == full).all()  # nothing is reduced here
    assert np.abs(FastDecoder()(content, image_size) - full).max() <= 1


@BOTH
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_both_refuse_what_is_broken_or_too_large(decoder, kind: str) -> None:
    content = encoded(photograph(200, 200), kind)
    for broken in (content[: len(content) // 2], content[:20], b""):
        with pytest.raises(BadSample) as caught:
            decoder(broken, 32)
        assert caught.value.kind == "broken image"
    with pytest.raises(BadSample) as caught:
        type(decoder)(max_pixels=200 * 200 - 1)(content, 32)
    assert caught.value.kind == "too many pixels"


def test_without_the_extra_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"data\.decoder=fast needs simplejpeg: pip install 'ldm-trainer\[fast\]'"):
        FastDecoder()
    assert "Pillow" in PilDecoder().libraries
