"""An image in a request (base64: PNG or JPEG by Pillow, or raw pixels) as the numbers that the model takes.

What is decoded here was sent by anybody: in the worker, which is confined (ipc/confinement.py), and within limits that
are looked at before anything is unpacked.
"""

import base64
import binascii
import dataclasses
import io
from typing import Any

import numpy as np

from nexus_grpc.ipc.errors import InvalidInput, ModelNotServable, Unsupported

from .model import Model, Shape, TensorSpec, shape_fits, shape_text
from .tensors import BOOL, BYTES, Array

# Of an image once it is unpacked: 16 million pixels are 48 MiB, and a quarter of a second of the worker's time.
PIXELS_MAX = 1 << 24
FORMATS = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff"}
# Pillow's modes of eight bits; of more, it would cut the upper ones off.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
HOW_TO_SAY = (
    "say in config.pbtxt how an image becomes numbers (parameters image_size, image_layout, image_scale, image_mean,"
    " image_std)"
)
INSTALL = "decoding PNG and JPEG needs Pillow, which this server lacks: pip install 'nexus-grpc[images]'"


@dataclasses.dataclass(frozen=True, slots=True)
class ImageInput:
    """The model's input that takes images, and what makes numbers of their pixels."""

    name: str
    height: int
    width: int
    channels: str
    # Where the channels stand in a row's shape: first, last; "" for a row without them.
    place: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def count(self) -> int:
        return len(self.mean)


def image_input(policy: dict[str, Any] | None, model: Model) -> ImageInput | None:
    """The configuration's words and the model's input together. Raises ModelNotServable where they do not fit.

    Args:
        policy: nexus_grpc.config_images.ImagePolicy as plain values; None without one.
    """
    if policy is None:
        return None
    spec = next((each for each in model.inputs if each.datatype not in (BYTES, BOOL) and len(each.shape) >= 3), None)
    if spec is None:
        raise ModelNotServable(f"config.pbtxt of '{model.name}' speaks of images, but no input has room for one")
    count = len(policy["mean"])
    place = _place(policy["layout"], count, spec)
    sides = [dim for index, dim in enumerate(spec.row_shape) if not place or index != (0 if place == "first" else 2)]
    height, width = policy["height"] or sides[0], policy["width"] or sides[1]
    expected = {"first": (count, height, width), "last": (height, width, count), "": (height, width)}[place]
    if min(height, width) < 1 or not shape_fits(spec.row_shape, expected):
        raise ModelNotServable(
            f"config.pbtxt of '{model.name}': images of {height}x{width} pixels and {count} channels do not fit input"
            f" '{spec.name}' {shape_text(spec.shape)}; set image_size, image_layout and image_channels"
        )
    scale = policy["scale"] or (1 / 255 if spec.datatype.dtype.kind == "f" else 1.0)
    numbers = scale, tuple(policy["mean"]), tuple(policy["std"])
    return ImageInput(spec.name, height, width, policy["channels"], place, *numbers)


def _place(layout: str, count: int, spec: TensorSpec) -> str:
    row = spec.row_shape
    if len(row) == 2 and count == 1:
        return ""
    if layout:
        return "first" if layout == "NCHW" else "last"
    return "last" if row[-1] == count and row[0] != count else "first"


def array_of(model: Model, spec: TensorSpec, text: str) -> Array:
    """One row of an input, from an image in base64. Raises InvalidInput, or Unsupported where Pillow is missing."""
    image = model.image
    if image is None or image.name != spec.name:
        raise InvalidInput(
            f"input '{spec.name}' of model '{model.name}' is text, but takes numbers; if it is an image, {HOW_TO_SAY}",
            field=spec.name,
        )
    pixels = _pixels(image, _decoded(text, spec.name), spec.name).astype(np.float64)
    numbers = (pixels * image.scale - np.array(image.mean)) / np.array(image.std)
    if image.place != "last":
        numbers = numbers.transpose(2, 0, 1) if image.place == "first" else numbers[:, :, 0]
    dtype = spec.datatype.dtype
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)  # type: ignore[type-var]
        numbers = np.rint(numbers).clip(bounds.min, bounds.max)
    return np.ascontiguousarray(numbers.astype(dtype))


def _decoded(text: str, name: str) -> bytes:
    """Base64, as it is or in a data URL."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(f"input '{name}': the image is no base64", field=name) from None


def _pixels(image: ImageInput, content: bytes, name: str) -> Array:
    """[height, width, channels], in the model's order of channels."""
    for kind, magic in FORMATS.items():
        if content.startswith(magic):
            return _unpacked(image, kind, content, name)
    shape: Shape = (image.height, image.width, image.count)
    expected = image.height * image.width * image.count
    if len(content) != expected:
        raise InvalidInput(
            f"input '{name}': expected an image as PNG, as JPEG, or {expected} bytes of raw pixels {shape_text(shape)},"
            f" got {len(content)} bytes of something else",
            field=name,
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _unpacked(image: ImageInput, kind: str, content: bytes, name: str) -> Array:
    try:
        from PIL import Image
    except ImportError:
        raw = f"{image.height * image.width * image.count} bytes of raw pixels do without"
        raise Unsupported(f"{INSTALL}; {raw}", reason="NO_PILLOW", field=name) from None
    # Its own limit only warns; ours is below.
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(io.BytesIO(content), formats=(kind,)) as picture:
            if picture.width * picture.height > PIXELS_MAX:
                size = f"{picture.width}x{picture.height}"
                raise InvalidInput(f"input '{name}': the image has {size} pixels; at most {PIXELS_MAX}", field=name)
            if picture.mode not in MODES:
                raise InvalidInput(f"input '{name}': images of mode {picture.mode} are not supported", field=name)
            converted = picture.convert("L" if image.count == 1 else "RGB")
    except InvalidInput:
        raise
    except Exception as error:
        # Pillow's decoders raise whatever they meet.
        said = f"{type(error).__name__}: {error}"[:200]
        raise InvalidInput(f"input '{name}': the {kind} image cannot be decoded: {said}", field=name) from None
    if converted.size != (image.width, image.height):
        converted = converted.resize((image.width, image.height), Image.Resampling.BILINEAR)
    pixels = np.asarray(converted, np.uint8).reshape(image.height, image.width, image.count)
    return pixels[:, :, ::-1] if image.channels == "BGR" else pixels
