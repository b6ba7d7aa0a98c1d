"""Refuses ONNX graphs that need more than their own weights and the standard operators.

onnxruntime would read any file that a graph names as its weights, load operators from libraries, and run
loops that never end. This reads only the protobuf fields that matter, so the service does not need `onnx`.
"""

from collections.abc import Iterator

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
EXTERNAL = 1  # TensorProto.DataLocation

# Field numbers of onnx.proto.
_MODEL_GRAPH, _MODEL_TRAINING, _MODEL_FUNCTION = 7, 20, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_FUNCTION_NODE, _FUNCTION_DOMAIN = 7, 10
_NODE_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_TENSOR_EXTERNAL_DATA, _TENSOR_LOCATION = 13, 14


class GraphError(ValueError):
    """A graph that must not be run. The message gives the reason and what to do."""


def check_graph(data: bytes) -> None:
    """Raise GraphError unless an ONNX file can be run without reading or loading anything else."""
    try:
        _check_model(memoryview(data))
    except (IndexError, UnicodeDecodeError) as error:
        raise GraphError("it is not an ONNX graph, or it is truncated; export the model again") from error


def _check_model(model: memoryview) -> None:
    fields = list(_fields(model))
    functions = [_bytes(value) for number, value in fields if number == _MODEL_FUNCTION]
    domains = DOMAINS | {_text(function, _FUNCTION_DOMAIN) for function in functions}
    if any(number == _MODEL_TRAINING for number, _ in fields):
        raise GraphError("it holds a training graph; export the model for inference")
    for function in functions:
        for number, value in _fields(function):
            if number == _FUNCTION_NODE:
                _check_node(_bytes(value), domains)
    for number, graph in fields:
        if number != _MODEL_GRAPH:
            continue
        for part, value in _fields(_bytes(graph)):
            if part == _GRAPH_NODE:
                _check_node(_bytes(value), domains)
            elif part == _GRAPH_INITIALIZER:
                _check_tensor(_bytes(value))
            elif part == _GRAPH_SPARSE:
                _check_sparse(_bytes(value))


def _check_node(node: memoryview, domains: frozenset[str]) -> None:
    kind, domain = _text(node, _NODE_TYPE), _text(node, _NODE_DOMAIN)
    if domain not in domains:
        raise GraphError(
            f"its operator {kind[:60]!r} is from the domain {domain[:60]!r}, which is not part of ONNX; "
            "export the model with standard operators"
        )
    for number, value in _fields(node):
        if number == _NODE_ATTRIBUTE:
            for part, content in _fields(_bytes(value)):
                if part in _ATTRIBUTE_GRAPHS:
                    raise GraphError(
                        f"its operator {kind[:60]!r} runs a sub-graph, which may never end; "
                        "export the model without control flow"
                    )
                if part in _ATTRIBUTE_TENSORS:
                    _check_tensor(_bytes(content))
                elif part in _ATTRIBUTE_SPARSE:
                    _check_sparse(_bytes(content))


def _check_sparse(sparse: memoryview) -> None:
    for number, value in _fields(sparse):
        if number in (1, 2):  # values and indices; the third is the shape
            _check_tensor(_bytes(value))


def _check_tensor(tensor: memoryview) -> None:
    for number, value in _fields(tensor):
        if number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_LOCATION and value == EXTERNAL):
            raise GraphError(
                "it keeps weights in another file; export the model into one (torch: external_data=False)"
            )


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and value of each field; IndexError if the message ends too early."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        value: int | memoryview
        if wire == 0:
            value, at = _varint(message, at)
        else:
            if wire == 2:
                size, at = _varint(message, at)
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
            else:
                raise IndexError("an unknown wire type")
            if at + size > end:
                raise IndexError("the field is longer than its message")
            value, at = message[at : at + size], at + size
        yield number, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = message[at]
        result |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return result, at
        if shift > 63:
            raise IndexError("a varint of more than 64 bits")


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise IndexError("a number instead of a message")
    return value


def _text(message: memoryview, field: int) -> str:
    """The last value of a text field, as in protobuf; empty if there is none."""
    found = ""
    for number, value in _fields(message):
        if number == field:
            found = bytes(_bytes(value)).decode()
    return found
