"""Images from outside are bounded before they are decoded, and come out upright and RGB."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.contract.errors import InvalidArgumentError
from infra.contract.prompt import ImagePart, Message, Prompt, Role, TextPart
from infra.runtime.images import ImageHeader, ImageLimits, check_images, decode_image, read_header

LIMITS = ImageLimits()
RED = (255, 0, 0)


def encoded(image: Image.Image, fmt: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def red(width: int = 6, height: int = 4, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (width, height), "red")


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = b"IDAT" + zlib.compress(b"")
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (body, end))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def webp_header(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + canvas
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def problem(data: bytes, mime_type: str = "", limits: ImageLimits = LIMITS) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as caught:
        decode_image(ImagePart(data, mime_type), limits)
    return caught.value


@pytest.mark.parametrize(
    ("fmt", "mime_type"),
    [
        ("PNG", "image/png"),
        ("JPEG", "image/jpeg"),
        ("JPEG", "image/jpg"),
        ("WEBP", "image/webp"),
        ("GIF", "Image/GIF; q=1"),
        ("BMP", "image/bmp"),
        ("PNG", ""),
    ],
)
def test_every_supported_format_is_decoded(fmt: str, mime_type: str) -> None:
    part = ImagePart(encoded(red(), fmt), mime_type)
    assert read_header(part, LIMITS) == ImageHeader(fmt, 6, 4)
    image = decode_image(part, LIMITS)
    assert (image.mode, image.size) == ("RGB", (6, 4))
    assert all(abs(a - b) < 8 for a, b in zip(image.getpixel((3, 2)), RED, strict=True))  # type: ignore[arg-type]


def test_other_formats_are_refused() -> None:
    error = problem(encoded(red(), "TIFF"))
    assert error.field == "image.data"
    assert "send a PNG, JPEG, WebP, GIF or BMP file" in error.description


@pytest.mark.parametrize(
    "data", [b"\x00", b"no image at all", b"\x89PNG\r\n\x1a\n", b"RIFF\x00\x00\x00\x00WEBPVP8X", b"BM"]
)
def test_bytes_that_are_no_image_are_refused(data: bytes) -> None:
    assert problem(data).field == "image.data"


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_truncated_image_is_refused(fmt: str) -> None:
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    data = encoded(noise, fmt)
    for keep in (len(data) // 2, len(data) * 3 // 4):
        error = problem(data[:keep])
        assert error.field == "image.data"
        assert "<_io" not in error.description, "no Python object in a message"


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@settings(deadline=None)
@given(data=st.data())
def test_damaged_images_decode_or_are_refused_and_nothing_else(fmt: str, data: st.DataObject) -> None:
    content = bytearray(encoded(red(32, 32), fmt))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(InvalidArgumentError):
        assert decode_image(ImagePart(bytes(content)), ImageLimits(max_pixels=100_000)).mode == "RGB"


@pytest.mark.parametrize(
    "data",
    [png_header(7100, 7100), png_header(60_000, 60_000), webp_header(16_000, 16_000), webp_header(2**24, 2**8)],
    ids=["png over the limit", "png bomb", "webp bomb", "webp giant"],
)
def test_gigantic_image_is_refused_by_header_alone(data: bytes) -> None:
    tracemalloc.start()
    try:
        error = problem(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "too many" in error.description
    assert "at most 50000000" in error.description
    assert peak < 2**20


def test_too_many_bytes_are_refused_with_both_numbers() -> None:
    error = problem(encoded(red()), limits=ImageLimits(max_bytes=10))
    assert "at most 10 an image" in error.description


def test_wrong_mime_type_is_refused_naming_right_one() -> None:
    error = problem(encoded(red()), "image/jpeg")
    assert error.field == "image.mime_type"
    assert error.description == "says 'image/jpeg', but the data is image/png"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(fmt: str, orientation: int) -> None:
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste("red", (0, 0, 8, 8))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(ImagePart(encoded(stored, fmt, exif=exif)), LIMITS)
    assert image.size == (32, 16)
    top_left, elsewhere = image.getpixel((3, 3)), image.getpixel((28, 12))
    assert isinstance(top_left, tuple)
    assert isinstance(elsewhere, tuple)
    assert top_left[1] < 90, "red"
    assert elsewhere[1] > 200, "white"


def test_image_with_broken_exif_is_decoded() -> None:
    data = encoded(red(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert decode_image(ImagePart(data), LIMITS).size == (6, 4)


def test_transparency_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.putpixel((0, 0), (255, 0, 0, 255))
    clear.putpixel((1, 0), (255, 0, 0, 128))
    image = decode_image(ImagePart(encoded(clear)), LIMITS)
    assert [image.getpixel((x, 0)) for x in range(3)] == [RED, (255, 127, 127), (255, 255, 255)]
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    opaque = decode_image(ImagePart(encoded(palette)), LIMITS)
    assert [opaque.getpixel((x, 0)) for x in range(2)] == [RED, (0, 0, 255)]
    see_through = decode_image(ImagePart(encoded(palette, transparency=1)), LIMITS)
    assert [see_through.getpixel((x, 0)) for x in range(2)] == [RED, (255, 255, 255)]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_png_mode_becomes_rgb(mode: str) -> None:
    assert decode_image(ImagePart(encoded(Image.new(mode, (3, 2)))), LIMITS).mode == "RGB"


def test_sixteen_bits_keep_their_shades_and_cmyk_its_colour() -> None:
    deep = Image.new("I;16", (3, 1))
    for x, value in enumerate((0, 32768, 65535)):
        deep.putpixel((x, 0), value)
    image = decode_image(ImagePart(encoded(deep)), LIMITS)
    assert [image.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]
    cmyk = decode_image(ImagePart(encoded(red().convert("CMYK"), "JPEG")), LIMITS).getpixel((2, 2))
    assert isinstance(cmyk, tuple)
    assert cmyk[0] > 200
    assert cmyk[1] < 90


def test_animation_is_decoded_as_first_frame() -> None:
    frames = [red(), Image.new("RGB", (6, 4), "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)
    assert decode_image(ImagePart(data), LIMITS).getpixel((1, 1)) == RED


def test_check_of_prompt_names_wrong_image() -> None:
    good = ImagePart(encoded(red()))
    prompt = Prompt(
        (
            Message(Role.USER, (good, TextPart("first"))),
            Message(Role.ASSISTANT, (TextPart("ok"),)),
            Message(Role.USER, (TextPart("and"), good, ImagePart(b"nonsense"))),
        )
    )
    with pytest.raises(InvalidArgumentError) as caught:
        check_images(prompt, LIMITS)
    assert caught.value.field == "messages[2].parts[2].image.data"
    check_images(Prompt.of("fine", [good] * 16), LIMITS)
    with pytest.raises(InvalidArgumentError, match="17 images are too many; at most 16 a prompt") as many:
        check_images(Prompt.of("", [good] * 17), LIMITS)
    assert many.value.field == "messages"
