"""How an image becomes a model's numbers, from a config.pbtxt's `parameters`; workers/images.py does it.

number = (pixel × image_scale − image_mean) / image_std
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from nexus_grpc.config_refusals import refusal

Layout = Literal["NCHW", "NHWC"]
Channels = Literal["RGB", "BGR", "GRAY"]
IMAGE_PARAMETERS = ("image_size", "image_layout", "image_channels", "image_scale", "image_mean", "image_std")
SIDE_MAX = 4096


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """As the configuration says it; what is left out, the model's input says.

    Attributes:
        height, width: in pixels; 0 = the input's.
        layout: where the channels stand; empty = where the input has that many.
        channels: their number and order.
        scale: 0 = 1/255 for an input of floats, 1 for one of integers.
        mean, std: one number for each channel.
    """

    height: int = 0
    width: int = 0
    layout: str = ""
    channels: str = "RGB"
    scale: float = 0.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)


def read_image(values: Mapping[str, str]) -> ImagePolicy | None:
    """None where no parameter speaks of images. Raises ModelNotServable."""
    if not set(values) & set(IMAGE_PARAMETERS):
        return None
    channels = cast(Channels, _choice(values, "image_channels", get_args(Channels), "RGB"))
    count = 1 if channels == "GRAY" else 3
    std = _numbers(values, "image_std", count, 1.0)
    if not all(std):
        raise refusal("parameters.image_std", f'is "{values["image_std"]}"; expected numbers other than 0')
    scale = _numbers(values, "image_scale", 1, 0.0)[0]
    if "image_scale" in values and not scale:
        raise refusal("parameters.image_scale", f'is "{values["image_scale"]}"; expected a number other than 0')
    height, width = _size(values.get("image_size", ""))
    layout = _choice(values, "image_layout", ("", *get_args(Layout)), "")
    return ImagePolicy(height, width, layout, channels, scale, _numbers(values, "image_mean", count, 0.0), std)


def _choice(values: Mapping[str, str], name: str, choices: tuple[str, ...], default: str) -> str:
    text = values.get(name, default)
    if text not in choices:
        raise refusal(f"parameters.{name}", f'is "{text}"; expected one of {", ".join(filter(None, choices))}')
    return text


def _size(text: str) -> tuple[int, int]:
    if not text:
        return 0, 0
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isascii() and side.isdecimal() and 0 < len(side) < 6 for side in sides):
        raise refusal("parameters.image_size", f'is "{text}"; expected height and width in pixels, such as 224x224')
    height, width = map(int, sides)
    if not 1 <= min(height, width) <= max(height, width) <= SIDE_MAX:
        raise refusal("parameters.image_size", f'is "{text}"; expected sides of 1 to {SIDE_MAX} pixels')
    return height, width


def _numbers(values: Mapping[str, str], name: str, count: int, default: float) -> tuple[float, ...]:
    """One for each channel; a single one counts for all."""
    text = values.get(name)
    if text is None:
        return (default,) * count
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, count) or not all(map(math.isfinite, numbers)):
        expected = "a number" if count == 1 else f"a number, or {count} with commas between them"
        raise refusal(f"parameters.{name}", f'is "{text}"; expected {expected}')
    return numbers * count if len(numbers) == 1 else numbers
