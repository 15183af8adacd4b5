"""Images as numbers: what the configuration says, what is decoded, and what is refused before it is unpacked."""

import base64
import builtins
import dataclasses
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nexus_grpc.config_images import ImagePolicy, read_image
from nexus_grpc.ipc.errors import InvalidInput, ModelNotServable, Unsupported
from nexus_grpc.worker.images import PIXELS_MAX, array_of, image_input
from nexus_grpc.worker.model import Model
from tests.unit.support import model_of, spec

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10


def model_for(*shape: int, datatype: str = "FP32", **parameters: str) -> Model:
    model = model_of(spec("x", datatype, *shape))
    policy = read_image(parameters or {"image_channels": "RGB"})
    assert policy is not None
    model.image = image_input(dataclasses.asdict(policy), model)
    return model


def encoded(pixels: Any, kind: str = "PNG", **options: Any) -> str:
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, kind, **options)
    return base64.b64encode(written.getvalue()).decode()


def raw(pixels: Any) -> str:
    return base64.b64encode(pixels.tobytes()).decode()


def decode(model: Model, text: str) -> Any:
    return array_of(model, model.inputs[0], text)


def test_layouts_channels_and_raw_pixels() -> None:
    first, last = model_for(-1, 3, 2, 3, image_scale="1"), model_for(-1, 2, 3, 3, image_scale="1", image_layout="NHWC")
    for text in (encoded(PIXELS), raw(PIXELS), "data:image/png;base64," + encoded(PIXELS)):
        assert decode(first, text).tolist() == PIXELS.transpose(2, 0, 1).tolist()
        assert decode(last, text).tolist() == PIXELS.tolist()
    reverse = model_for(-1, 3, 2, 3, image_scale="1", image_channels="BGR")
    assert decode(reverse, encoded(PIXELS)).tolist() == PIXELS[:, :, ::-1].transpose(2, 0, 1).tolist()
    assert decode(first, encoded(PIXELS, "PNG")).flags.c_contiguous


def test_scale_mean_and_std() -> None:
    model = model_for(-1, 3, 2, 3, image_mean="0.485, 0.456, 0.406", image_std="0.229,0.224,0.225")
    expected = (PIXELS / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert decode(model, encoded(PIXELS)) == pytest.approx(expected.transpose(2, 0, 1), rel=1e-6)
    whole = model_for(-1, 3, 2, 3, datatype="UINT8")
    assert decode(whole, encoded(PIXELS)).tolist() == PIXELS.transpose(2, 0, 1).tolist()


@pytest.mark.parametrize("shape", [(-1, 2, 3), (-1, 1, 2, 3), (-1, 2, 3, 1)])
def test_gray(shape: tuple[int, ...]) -> None:
    model = model_for(*shape, image_channels="GRAY", image_scale="1", image_size="2x3")
    assert decode(model, encoded(PIXELS[:, :, 0])).ravel().tolist() == PIXELS[:, :, 0].ravel().tolist()
    assert decode(model, raw(PIXELS[:, :, 0])).shape == shape[1:]


def test_another_size_is_resized_and_jpeg_read() -> None:
    model = model_for(-1, 3, -1, -1, image_size="4x5", image_scale="1")
    even = np.full((40, 50, 3), 200, np.uint8)
    for kind in ("PNG", "JPEG"):
        assert decode(model, encoded(even, kind)) == pytest.approx(np.full((3, 4, 5), 200), abs=2)
    for mode in ("L", "P", "RGBA", "1"):
        written = io.BytesIO()
        Image.fromarray(even).convert(mode).save(written, "PNG")
        assert decode(model, base64.b64encode(written.getvalue()).decode()).shape == (3, 4, 5)


def png_of(width: int, height: int) -> str:
    """A PNG that says so and has hardly a byte."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no base64!", "is no base64"),
        (base64.b64encode(b"GIF89a").decode(), "as PNG, as JPEG, or 18 bytes of raw pixels .*, got 6 bytes"),
        ("", "got 0 bytes"),
        (encoded(PIXELS)[:40], "cannot be decoded"),
        (png_of(1 << 14, 1 << 14), f"16384x16384 pixels; at most {PIXELS_MAX}"),
        (png_of((1 << 31) - 1, (1 << 31) - 1), "pixels; at most|cannot be decoded"),
        (png_of(4000, 4000), "cannot be decoded"),
        (encoded(np.full((4, 4), 40_000, np.uint16)), "mode I;16 are not supported"),
    ],
)
def test_what_is_no_image_for_it(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        decode(model_for(-1, 3, 2, 3), text)


def test_a_model_that_takes_no_images() -> None:
    model = model_of(spec("x", "FP32", -1, 3, 2, 2))
    with pytest.raises(InvalidInput, match=r"say in config\.pbtxt how an image becomes numbers .*image_size"):
        decode(model, encoded(PIXELS))
    assert read_image({"labels": "a,b"}) is None
    assert image_input(None, model) is None


def test_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw pixels need none; for the rest the message says what to install."""
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name == "PIL":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    model = model_for(-1, 3, 2, 3)
    with pytest.raises(Unsupported, match=r"pip install 'nexus-grpc\[images\]'; 18 bytes of raw pixels do without"):
        decode(model, encoded(PIXELS))
    assert decode(model, raw(PIXELS)).shape == (3, 2, 3)


@pytest.mark.parametrize(
    ("shape", "parameters", "words"),
    [
        ((-1, 3, -1, -1), {}, "do not fit input 'x'"),
        ((-1, 3, 8, 8), {"image_size": "9x9"}, "images of 9x9 pixels and 3 channels do not fit"),
        ((-1, 3, 8, 8), {"image_layout": "NHWC"}, "do not fit"),
        ((-1, 3, 8, 8), {"image_channels": "GRAY"}, "do not fit"),
        ((-1, 4), {}, "no input has room for one"),
    ],
)
def test_what_does_not_fit_the_model(shape: tuple[int, ...], parameters: dict[str, str], words: str) -> None:
    with pytest.raises(ModelNotServable, match=words):
        model_for(*shape, **parameters)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("image_size", "224"),
        ("image_size", "0x3"),
        ("image_size", "9999x9999"),
        ("image_layout", "CHW"),
        ("image_channels", "rgb"),
        ("image_scale", "0"),
        ("image_scale", "nan"),
        ("image_mean", "1,2"),
        ("image_std", "1,0,1"),
    ],
)
def test_what_parameters_cannot_be(name: str, text: str) -> None:
    with pytest.raises(ModelNotServable, match=f"parameters.{name}: is .*; expected"):
        read_image({name: text})


def test_one_number_for_all_channels() -> None:
    found = read_image({"image_mean": "0.5", "image_std": "2", "image_size": "2X4", "image_scale": "1"})
    assert found == ImagePolicy(2, 4, "", "RGB", 1.0, (0.5,) * 3, (2.0,) * 3)
