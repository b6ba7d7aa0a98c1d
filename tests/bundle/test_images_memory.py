"""Large images of every kind, at the default limit on pixels, grow the process by less than 150 MB each.

Measured in a separate process, whose peak Linux reports.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BAR = 150  # MB, the limit for hostile input

MEASURE = """
import io, json, warnings
import numpy as np
from PIL import Image
from vaeserve.bundle.images import FORMATS, TooManyPixels, read_image
from service.settings import Settings

CAP = Settings(_env_file=None).max_pixels
SIDE = int(CAP**0.5)

def file(kind, mode, side=SIDE, **options):
    image = Image.new("RGB", (side, side), (200, 20, 20)).convert("L" if mode in ("LA", "I;16") else "RGB")
    if mode == "I;16":
        image = Image.fromarray(np.full((side, side), 40_000, np.uint16))
    data = io.BytesIO()
    (image if image.mode == mode else image.convert(mode)).save(data, kind, **options)
    return data.getvalue()

def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(name))

def grown(data, channels):
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    read_image(data, height=28, width=28, channels=channels, fit="contain", max_pixels=CAP)
    return round(status("VmHWM") - before)

def refused(data):
    try:
        read_image(data, height=28, width=28, channels=1, fit="contain", max_pixels=CAP)
    except TooManyPixels:
        return True
    return False

exif = Image.Exif()
exif[0x0112] = 6
quick = {"compress_level": 1}
files = {
    "PNG I;16": file("PNG", "I;16", **quick),
    "PNG LA": file("PNG", "LA", **quick),
    "PNG P with transparency": file("PNG", "P", transparency=3, **quick),
    "PNG RGB": file("PNG", "RGB", **quick),
    "PNG RGBA": file("PNG", "RGBA", **quick),
    "PNG RGBA turned": file("PNG", "RGBA", exif=exif, **quick),
    "JPEG CMYK, progressive": file("JPEG", "CMYK", progressive=True, subsampling=0),
    "BMP": file("BMP", "RGB"),
    "WEBP": file("WEBP", "RGBA", int((CAP / 2) ** 0.5), lossless=True, method=0, quality=0),
}
for kind in FORMATS:  # parsers are imported at their first use
    read_image(file(kind, "RGB", 30), height=28, width=28, channels=3, fit="contain")
print(json.dumps({
    "grown": {name: [grown(data, channels) for channels in (1, 3)] for name, data in files.items()},
    "webp refused": refused(file("WEBP", "L", SIDE - 1, quality=0, method=0)),
}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux reports the peak")
def test_the_largest_images_of_every_kind_stay_below_the_bar():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    assert found["webp refused"]
    assert {name: most for name, most in found["grown"].items() if max(most) >= BAR} == {}
