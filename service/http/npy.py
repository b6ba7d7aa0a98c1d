"""Reads .npy bodies without trusting their header: numpy itself would allocate whatever that declares."""

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.core.problems import InvalidRequest, WrongShape

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,  # longer, for structured types
}


def read_npy(data: bytes, *dtypes: np.dtype[Any]) -> NDArray[Any]:
    """The array of an .npy file, which must be of one of these types; never a pickle."""
    file = io.BytesIO(data)
    try:
        shape, fortran, found = _HEADERS[np.lib.format.read_magic(file)](file)
    except Exception as error:  # the header is a Python literal: its parser raises nearly anything
        raise InvalidRequest(
            "The body cannot be read as a .npy file; write it with numpy.save(file, array)."
        ) from error
    if found not in dtypes:
        names = " or ".join(map(str, dtypes))
        raise WrongShape(
            f"The array is {found}; send {names}, for example numpy.save(file, array.astype('{dtypes[0]}'))."
        )
    size = math.prod(shape)
    rest = len(data) - file.tell()
    if rest != size * found.itemsize:
        raise InvalidRequest(
            f"The header declares an array of {size * found.itemsize:,} bytes, and {rest:,} follow; "
            "the body was cut or changed: send it again."
        )
    try:
        array = np.frombuffer(data, found, count=size, offset=file.tell())
        array = array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
    except (ValueError, TypeError, OverflowError) as error:  # dimensions like -6 or True, whose product fits
        raise InvalidRequest(
            f"No array has the shape {shape}; write it with numpy.save(file, array)."
        ) from error
    return np.require(array, requirements=["C", "A"])  # a header of odd length leaves the numbers unaligned
