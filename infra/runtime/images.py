"""Untrusted images: limits are checked on their headers before decoding; decoding returns upright RGB."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

from PIL import Image

from infra.contract.errors import InvalidArgumentError, field_path
from infra.contract.prompt import ImagePart, Prompt

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

_MIME_TYPES = {
    "PNG": ("image/png",),
    "JPEG": ("image/jpeg", "image/jpg"),
    "WEBP": ("image/webp",),
    "GIF": ("image/gif",),
    "BMP": ("image/bmp", "image/x-ms-bmp", "image/x-bmp"),
}
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageLimits:
    """Limits: images per prompt, bytes of one encoded image, pixels of one image."""

    max_images: int = 16
    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000


@dataclass(frozen=True)
class ImageHeader:
    """The header of an image: its format (one of FORMATS), and its size in pixels as stored."""

    format: str
    width: int
    height: int


def check_images(prompt: Prompt, limits: ImageLimits) -> None:
    """Raise InvalidArgumentError, with the field path, unless every image of the prompt is within the limits.

    Only headers are read: a broken body is detected when the image is decoded.
    """
    count = len(prompt.images)
    if count > limits.max_images:
        raise InvalidArgumentError("messages", f"{count} images are too many; at most {limits.max_images} a prompt")
    for turn, message in enumerate(prompt.messages):
        for index, part in enumerate(message.parts):
            if isinstance(part, ImagePart):
                with field_path(f"messages[{turn}].parts[{index}]"):
                    read_header(part, limits)


def read_header(part: ImagePart, limits: ImageLimits) -> ImageHeader:
    """Return the header of an image. Raises InvalidArgumentError if it exceeds the limits."""
    header, _ = _open(part, limits)
    return header


def decode_image(part: ImagePart, limits: ImageLimits | None = None) -> Image.Image:
    """Return the image as upright RGB: transparent pixels on white, the first frame of an animation.

    Raises InvalidArgumentError if it exceeds the limits, or is truncated or broken.
    """
    _, image = _open(part, limits or ImageLimits())
    try:
        image.load()
        return _to_rgb(_upright(image))
    # Decoders raise many kinds of exceptions on malformed bytes. All of them are errors of the sender.
    except Exception as error:
        raise InvalidArgumentError(
            "image.data", f"the image is broken or cut off ({_reason(error)}); send the whole file"
        ) from error


def _open(part: ImagePart, limits: ImageLimits) -> tuple[ImageHeader, Image.Image]:
    if len(part.data) > limits.max_bytes:
        raise InvalidArgumentError(
            "image.data", f"{len(part.data)} bytes are too many; at most {limits.max_bytes} an image"
        )
    if _is_webp(part.data):
        # Pillow's WebP reader allocates the whole canvas on open, so its size is checked first.
        _check_pixels(*_webp_size(part.data), limits)
    try:
        image = Image.open(io.BytesIO(part.data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidArgumentError(
            "image.data", f"the image has too many pixels; at most {limits.max_pixels}, scale it down"
        ) from error
    except Exception as error:
        raise InvalidArgumentError(
            "image.data", f"not a readable image ({_reason(error)}); send a PNG, JPEG, WebP, GIF or BMP file"
        ) from error
    name = "JPEG" if image.format == "MPO" else str(image.format)
    _check_pixels(image.width, image.height, limits)
    declared = part.mime_type.partition(";")[0].strip().lower()
    if declared and declared not in _MIME_TYPES[name]:
        raise InvalidArgumentError(
            "image.mime_type", f"says {part.mime_type[:40]!r}, but the data is {_MIME_TYPES[name][0]}"
        )
    return ImageHeader(name, image.width, image.height), image


def _check_pixels(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        raise InvalidArgumentError(
            "image.data", f"{width} x {height} pixels are too many; at most {limits.max_pixels}, scale the image down"
        )


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return the canvas size in the first chunk of a WebP file (RFC 9649, section 2); 0 x 0 if it has none."""
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        return 0, 0
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", body[6:10])
    return width & 0x3FFF, height & 0x3FFF


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # Broken metadata does not mean that the pixels are broken.
        return image
    turn = _ORIENTATIONS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # 16 bits per sample: convert() would clip every value above 255 to white.
        return image.convert("F").point(lambda value: value / 256 + 0).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.partition("<_io")[0].strip()[:120] or type(error).__name__
