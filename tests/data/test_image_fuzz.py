# SPDX-License-Identifier: Apache-2.0
"""Damaged image files: pixels or one sentence that names the file, in bounded time and memory."""

import io
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mambaout_jax.data.sets.image_files import UnreadableImageError, decode_image

pytestmark = pytest.mark.slow

FORMATS = {"PNG": "RGBA", "JPEG": "CMYK", "GIF": "P", "BMP": "L", "WEBP": "RGB", "TIFF": "I;16"}
MEMORY, SECONDS = 1 << 26, 5.0  # of files of a kilobyte, and at most 1,024 pixels as they say


def encoded(kind):
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 4), np.uint8)
    mode = FORMATS[kind]
    image = Image.fromarray(pixels[..., :3])
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    elif mode != "RGB":
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


FILES = {kind: encoded(kind) for kind in FORMATS}


@settings(max_examples=2000, deadline=None, derandomize=True, database=None)
@given(data=st.data(), kind=st.sampled_from(list(FILES)), channels=st.sampled_from([1, 3]))
def test_a_mutated_image_is_pixels_or_a_sentence(data, kind, channels):
    content = bytearray(FILES[kind])
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    refused = "some.file"
    began = time.perf_counter()
    tracemalloc.start()
    try:
        image = decode_image(content, channels, "some.file", max_pixels=2**20)
        pixels = np.asarray(image)
        assert pixels.dtype == np.uint8
        assert pixels.shape[2:] == ((3,) if channels == 3 else ())
    except UnreadableImageError as error:
        refused = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert "some.file" in refused
    assert "\n" not in refused
    assert peak < MEMORY
    assert time.perf_counter() - began < SECONDS
