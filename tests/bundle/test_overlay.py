"""What is unusual is drawn where it is in the original."""

import io

import numpy as np
import pytest
from PIL import Image

from vaeserve.bundle.images import Frame, read_image
from vaeserve.bundle.overlay import overlay


def with_a_square(height, width, top, left, side):
    original = np.full((height, width, 3), 60, np.uint8)
    original[top : top + side, left : left + side] = (255, 0, 0)
    return original


@pytest.mark.parametrize("fit", ["contain", "cover", "stretch"])
@pytest.mark.parametrize(("height", "width"), [(90, 200), (200, 90), (64, 48), (48, 64), (30, 31)])
def test_a_box_of_the_fitted_image_lies_where_it_came_from(fit, height, width):
    side = min(height, width) // 3
    top, left = height // 2 - side // 4, width // 2 - side // 2
    file = io.BytesIO()
    Image.fromarray(with_a_square(height, width, top, left, side)).save(file, "PNG")
    fitted = read_image(file.getvalue(), height=48, width=64, channels=3, fit=fit)
    rows, columns = np.nonzero(fitted[:, :, 0] > 150)
    frame = Frame.of((height, width), (48, 64), fit)
    box = frame.box(rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
    expected = (left, top, left + side, top + side)
    assert np.abs(np.subtract(box, expected)).max() <= 1 + max(frame.down, frame.right)


def test_boxes_stay_inside_the_original():
    frame = Frame.of((10, 100), (64, 64), "contain")  # mostly padding
    assert frame.box(0, 0, 64, 64) == (0, 0, 100, 10)
    assert frame.box(0, 0, 2, 1) == (0, 0, 2, 1)
    assert frame.box(63, 63, 64, 64) == (98, 9, 100, 10)


@pytest.mark.parametrize("drawn", [1, 2])
def test_the_unusual_place_is_coloured_and_outlined(drawn):
    """Also in a picture that is half as large as the original."""
    frame = Frame.of((80, 120), (8, 12), "stretch")
    unusual = np.full((8, 12), -3, np.float32)
    unusual[2:4, 6:8] = 9
    image = np.random.default_rng(0).integers(0, 256, (80 // drawn, 120 // drawn, 3), dtype=np.uint8)
    picture = overlay(image, unusual, frame, frame.box(2, 6, 4, 8)).astype(int)
    assert picture.shape == image.shape
    red = picture[:, :, 0] - picture[:, :, 2] > 60
    rows, columns = np.nonzero(red)
    assert abs(rows.min() * drawn - 20) <= 10
    assert abs(columns.max() * drawn - 80) <= 10
    assert red[30 // drawn, 70 // drawn]
    grey = picture[: 8 // drawn]
    assert (grey == grey[:, :, :1]).all()
