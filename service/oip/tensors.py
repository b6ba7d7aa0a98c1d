"""Requests and answers of the Open Inference Protocol as bytes: JSON, and tensors after it in binary.

A body is a JSON header, and behind it the tensors that the header says are binary, in its order and without
padding, little-endian and row-major. `Inference-Header-Content-Length` says where the header ends; without
it all is header, and 0 means that there is none: the body is the one input of one row. Either side may be
compressed with gzip or deflate (which is zlib's format).
"""

import gzip
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from service.core.problems import InvalidRequest, TooLarge, UnsupportedMediaType, WrongShape

HEADER_LENGTH = "Inference-Header-Content-Length"
DTYPES: dict[str, np.dtype[Any]] = {
    "UINT8": np.dtype("u1"),
    "INT64": np.dtype("<i8"),
    "FP32": np.dtype("<f4"),
}
CODINGS = ("gzip", "deflate")
COMPRESS_FROM = 1024  # bytes; below, compressing costs more than it saves
# Names that mean something to Triton, and that nobody may mean anything else by.
RESERVED, RESERVED_PREFIX = frozenset({"headers"}), "triton_"


class Spec(NamedTuple):
    """One tensor of a model: the graph's name for it, its type, and the shape of a row."""

    name: str
    datatype: str
    row: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.row) * DTYPES[self.datatype].itemsize


@dataclass(frozen=True)
class Inference:
    """What a request asks for: inputs by name, [n, *row], and which outputs, each in binary or not."""

    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, bool]
    id: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


# --- in ---------------------------------------------------------------------------------------------------


def inflate(data: bytes, coding: str, most: int) -> bytes:
    """The body without its Content-Encoding; refused once it has more than `most` bytes."""
    coding = coding.strip().lower()
    if coding in ("", "identity"):
        return data
    if coding not in CODINGS:
        raise UnsupportedMediaType(
            f"A body of Content-Encoding {coding[:40]!r} cannot be read here; possible are gzip and deflate.",
            headers={"Accept-Encoding": ", ".join(CODINGS)},
        )
    stream = zlib.decompressobj(31 if coding == "gzip" else 15)
    try:
        plain = stream.decompress(data, most + 1)
    except zlib.error as error:
        raise InvalidRequest(f"The body is not compressed with {coding} ({error}); send it again.") from None
    if len(plain) > most:
        raise TooLarge(f"The body unpacks to more than the {most:,} bytes allowed; send less at a time.")
    if not stream.eof or stream.unused_data:
        raise InvalidRequest(f"The body is not one whole {coding} stream; send it again.")
    return plain


def read(
    data: bytes, header_length: str | None, inputs: Sequence[Spec], outputs: Sequence[Spec], max_rows: int
) -> Inference:
    """The request in a body (inflated), for a model with these inputs and outputs."""
    if header_length is None:
        return _from_json(data, b"", inputs, outputs, max_rows)
    if not header_length.isdecimal() or len(header_length) > 18 or int(header_length) > len(data):
        raise InvalidRequest(
            f"{HEADER_LENGTH} is {header_length[:40]!r}; it must be the number of bytes of the JSON before "
            f"the tensors, and the body has {len(data):,} bytes."
        )
    length = int(header_length)
    if length:
        return _from_json(data[:length], memoryview(data)[length:], inputs, outputs, max_rows)
    if len(inputs) > 1:
        raise InvalidRequest(f"A body without JSON is one tensor, and this model takes {len(inputs)}.")
    array = _from_bytes(data, inputs[0], (1, *inputs[0].row))
    return Inference({inputs[0].name: array}, dict.fromkeys((spec.name for spec in outputs), True))


def _from_json(
    head: bytes,
    rest: bytes | memoryview,
    inputs: Sequence[Spec],
    outputs: Sequence[Spec],
    max_rows: int,
) -> Inference:
    try:
        request = orjson.loads(head)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The request is not JSON ({error}); see /v2/models/<name>.") from None
    request = _object(request, "the request")
    parameters = _object(request.get("parameters") or {}, "`parameters`")
    for name in parameters:
        if name in RESERVED or name.startswith(RESERVED_PREFIX):
            raise InvalidRequest(f"The parameter {name[:40]!r} is reserved; take another name.")
    identity = request.get("id")
    if identity is not None and not isinstance(identity, str):
        raise InvalidRequest("`id` must be a string.")
    tensors, rest = _tensors(request.get("inputs"), rest, inputs, max_rows)
    if len(rest):
        raise InvalidRequest(
            f"{len(rest):,} bytes follow the tensors that `inputs` names; give each its `binary_data_size`."
        )
    default = parameters.get("binary_data_output") is True
    return Inference(tensors, _requested(request.get("outputs"), outputs, default), identity, parameters)


def _tensors(
    listed: Any, rest: bytes | memoryview, inputs: Sequence[Spec], max_rows: int
) -> tuple[dict[str, NDArray[Any]], bytes | memoryview]:
    """The arrays by name, all of the same number of rows, and what is left of the bytes."""
    specs = {spec.name: spec for spec in inputs}
    arrays: dict[str, NDArray[Any]] = {}
    if not isinstance(listed, list):
        raise InvalidRequest(f"`inputs` must be a list of tensors; this model takes {', '.join(specs)}.")
    for item in listed:
        tensor = _object(item, "a tensor of `inputs`")
        spec = specs.get(name) if isinstance(name := tensor.get("name"), str) else None
        if spec is None or spec.name in arrays:
            what = "twice" if spec else "of another name"
            raise InvalidRequest(f"`inputs` has a tensor {what}; this model takes {', '.join(specs)} once.")
        shape = _shape(tensor, spec, max_rows)
        parameters = _object(tensor.get("parameters") or {}, f"`parameters` of {spec.name}")
        if "shared_memory_region" in parameters:
            raise InvalidRequest("There is no shared memory here; send the tensor in the body.")
        size = parameters.get("binary_data_size")
        if (size is None) == (tensor.get("data") is None):
            raise InvalidRequest(f"{spec.name} must have either `data` or a `binary_data_size`.")
        if size is None:
            arrays[spec.name] = _from_list(tensor["data"], spec, shape)
            continue
        if type(size) is not int or not 0 <= size <= len(rest):
            raise InvalidRequest(
                f"{spec.name} has a `binary_data_size` of {str(size)[:40]}; {len(rest):,} bytes are left. "
                f"{HEADER_LENGTH} says where they begin."
            )
        arrays[spec.name] = _from_bytes(rest[:size], spec, shape)
        rest = rest[size:]
    if missing := specs.keys() - arrays.keys():
        raise InvalidRequest(f"`inputs` has no tensor {', '.join(sorted(missing))}.")
    return arrays, rest


def _shape(tensor: Mapping[str, Any], spec: Spec, max_rows: int) -> tuple[int, ...]:
    if tensor.get("datatype") != spec.datatype:
        raise WrongShape(
            f"{spec.name} is {str(tensor.get('datatype'))[:40]}; send {spec.datatype}, nothing is converted."
        )
    shape = tensor.get("shape")
    if (
        not isinstance(shape, list)
        or any(type(size) is not int for size in shape)
        or tuple(shape[1:]) != spec.row
        or len(shape) != len(spec.row) + 1
        or shape[0] < 1
    ):
        raise WrongShape(f"{spec.name} has the shape {str(shape)[:80]}; it must be {[-1, *spec.row]}.")
    if shape[0] > max_rows:
        raise TooLarge(f"{shape[0]:,} rows are more than the {max_rows:,} of one request; send several.")
    return tuple(shape)


def _from_bytes(data: bytes | memoryview, spec: Spec, shape: tuple[int, ...]) -> NDArray[Any]:
    expected = shape[0] * spec.row_bytes
    if len(data) != expected:
        raise WrongShape(
            f"{spec.name} has {len(data):,} bytes; {spec.datatype} {list(shape)} takes {expected:,}."
        )
    array = np.frombuffer(data, DTYPES[spec.datatype]).reshape(shape)
    return np.require(_finite(array, spec), requirements=["A"])  # behind the header nothing is aligned


def _from_list(data: Any, spec: Spec, shape: tuple[int, ...]) -> NDArray[Any]:
    """Numbers, nested like the shape or flat."""
    dtype = DTYPES[spec.datatype]
    try:
        numbers = np.asarray(data if isinstance(data, list) else [data])
    except ValueError:
        raise WrongShape(f"`data` of {spec.name} has lists of different lengths.") from None
    if numbers.dtype.kind not in ("iuf" if dtype.kind == "f" else "iu"):
        raise InvalidRequest(
            f"`data` of {spec.name} must be {'numbers' if dtype.kind == 'f' else 'integers'} only."
        )
    if numbers.shape != shape and numbers.shape != (math.prod(shape),):
        raise WrongShape(f"`data` of {spec.name} is {list(numbers.shape)}; its `shape` is {list(shape)}.")
    with np.errstate(over="ignore"):
        array = numbers.astype(dtype).reshape(shape)
    if dtype.kind != "f" and (array != numbers.reshape(shape)).any():
        raise InvalidRequest(f"`data` of {spec.name} has values that are not {spec.datatype}.")
    return _finite(array, spec)


def _finite(array: NDArray[Any], spec: Spec) -> NDArray[Any]:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidRequest(f"{spec.name} has values that are not finite as {spec.datatype}.")
    return array


def _requested(listed: Any, outputs: Sequence[Spec], default: bool) -> dict[str, bool]:
    """Which outputs, in which order, each in binary or not."""
    names = [spec.name for spec in outputs]
    if not listed:
        return dict.fromkeys(names, default)
    if not isinstance(listed, list):
        raise InvalidRequest("`outputs` must be a list.")
    requested: dict[str, bool] = {}
    for item in listed:
        output = _object(item, "an item of `outputs`")
        name = output.get("name")
        if name not in names or name in requested:
            raise InvalidRequest(
                f"`outputs` asks for {str(name)[:40]!r}; there are {', '.join(names)}, each once."
            )
        parameters = _object(output.get("parameters") or {}, f"`parameters` of {name}")
        for extension in ("classification", "shared_memory_region"):
            if parameters.get(extension):
                raise InvalidRequest(
                    f"`outputs` asks for {extension}, which is not among the extensions here."
                )
        binary = parameters.get("binary_data", default)
        requested[str(name)] = binary is True
    return requested


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{what[0].upper()}{what[1:]} must be a JSON object.")
    return value


# --- out --------------------------------------------------------------------------------------------------


def write(
    head: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    specs: Sequence[Spec],
    binary: Mapping[str, bool],
) -> tuple[bytes, dict[str, str]]:
    """The body of an answer, and the headers that say what it is. `head` has what goes before `outputs`."""
    datatypes = {spec.name: spec.datatype for spec in specs}
    listed, tail = [], []
    for name, in_binary in binary.items():
        array = np.ascontiguousarray(arrays[name], DTYPES[datatypes[name]])
        tensor: dict[str, Any] = {"name": name, "datatype": datatypes[name], "shape": array.shape}
        if in_binary:
            tensor["parameters"] = {"binary_data_size": array.nbytes}
            tail.append(array.data)
        else:
            tensor["data"] = array.reshape(-1)
        listed.append(tensor)
    text = orjson.dumps({**head, "outputs": listed}, option=orjson.OPT_SERIALIZE_NUMPY)
    if not tail:
        return text, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(text))}
    return b"".join((text, *tail)), headers


def coding(accepted: str) -> str | None:
    """gzip or deflate if Accept-Encoding names it (`*` does not): many clients send what they cannot undo."""
    named = {}
    for element in accepted.lower().split(","):
        name, _, quality = element.replace(" ", "").partition(";q=")
        named[name] = quality.rstrip("0.") != "" if quality else True
    return next((name for name in CODINGS if named.get(name)), None)


def deflate(body: bytes, name: str) -> bytes:
    """The body in a Content-Encoding; quick rather than small, since floats hardly shrink."""
    return gzip.compress(body, 1, mtime=0) if name == "gzip" else zlib.compress(body, 1)
