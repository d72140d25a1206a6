"""Pictures of tensors: read back by an independent decoder of the format."""

import struct
import zlib

import numpy as np
import pytest
import torch

from heldout.report import data_uri, png


def decoded(content):
    """The pixels of an unfiltered 8-bit PNG, with every checksum compared."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    place, data = 8, b""
    while place < len(content):
        length = struct.unpack(">I", content[place : place + 4])[0]
        kind, body = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        assert struct.unpack(">I", content[place + 8 + length : place + 12 + length])[0] == zlib.crc32(kind + body)
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", body[:10])
            assert depth == 8
        data += body if kind == b"IDAT" else b""
        place += 12 + length
    channels = {0: 1, 2: 3}[colour]
    rows = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, 1 + width * channels)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, channels)


def test_grey_and_colour_pictures_keep_every_pixel_in_its_place():
    picture = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    assert (decoded(png(picture)) == (picture * 255).round().byte().permute(1, 2, 0).numpy()).all()
    assert (decoded(png(picture[:1]))[..., 0] == decoded(png(picture))[..., 0]).all()
    assert (decoded(png(picture[0])) == decoded(png(picture[:1]))).all()


def test_values_outside_of_zero_and_one_are_stretched():
    assert decoded(png(torch.tensor([[-1.0, 0, 3]]))).ravel().tolist() == [0, 64, 255]
    assert decoded(png(torch.full((1, 2, 2), 7.0))).ravel().tolist() == [0] * 4


def test_large_pictures_are_thinned_out_on_the_page():
    import base64

    content = base64.b64decode(data_uri(torch.zeros(3, 200, 90)).partition(",")[2])
    assert decoded(content).shape == (67, 30, 3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(2, 4, 4), r"got \(2, 4, 4\)"),
        (torch.zeros(1, 0, 4), "image must be"),
        (torch.full((2, 2), torch.nan), "finite"),
        (torch.full((2, 2), torch.inf), "finite"),
    ],
)
def test_what_is_no_picture_is_told(image, message):
    with pytest.raises(ValueError, match=message):
        png(image)
