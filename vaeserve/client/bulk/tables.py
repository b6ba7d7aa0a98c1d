"""The parts of a bulk job as one file: .parquet, .npz or .npy, written without holding more than a part.

Output and side files are written atomically.
"""

import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vaeserve.client.bulk.job import Columns, Job
from vaeserve.client.errors import ClientError
from vaeserve.client.files import atomic_write

GROUP_ROWS, GROUP_BYTES = 1 << 16, 64 << 20  # of a row group of Parquet

SUFFIXES = (".parquet", ".npz", ".npy")


def merge(job: Job, output: Path, main: str) -> tuple[int, int]:
    """Write the output and its side files, and count (images in it, images that failed).

    `main` is the column of a .npy, which has `<output>.paths.txt` beside it. `<output>.failed.jsonl` lists
    those that failed, if any.
    """
    write: dict[str, Callable[[Job, Path, str], int]] = {".parquet": _parquet, ".npz": _npz, ".npy": _npy}
    failed = write_failures(job, output)
    rows = sum(len(part.entries) for part in job.parts(()))
    if rows:
        write[output.suffix.lower()](job, output, main)
    return rows, failed


Named = tuple[list[str], Columns]


def named(job: Job, columns: Sequence[str] | None = None) -> Iterator[Named]:
    """The names of the images that have results, and their columns, part by part."""
    all_names = job.names()
    for part in job.parts(columns):
        names = list(islice(all_names, part.stop - part.start))
        if len(part.entries):
            yield [names[entry - part.start] for entry in part.entries], part.columns


def check_parquet() -> None:
    """ClientError without pyarrow, before the work instead of after it."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ClientError(f"Parquet needs pyarrow: pip install 'vaeserve[parquet]' ({error})") from error


def failures_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.failed.jsonl")


def write_failures(job: Job, output: Path) -> int:
    """Write a line of JSON for each image without a result, and count them; no file if there are none."""
    count, all_names, path = 0, job.names(), failures_path(output)
    with atomic_write(path) as file:
        for part in job.parts(()):
            names = list(islice(all_names, part.stop - part.start))
            for entry, reason in part.failed:
                line = {"path": names[entry - part.start], "reason": reason}
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            count += len(part.failed)
    if not count:
        path.unlink()
    return count


def _npz(job: Job, output: Path, main: str) -> int:
    """path, model and every column, as numpy.savez writes them, one column after the other."""
    first = next(named(job))[1]
    rows = longest = 0
    for names, _ in named(job, ()):
        rows += len(names)
        longest = max(longest, *map(len, names))
    text = np.dtype(f"<U{longest}")
    with atomic_write(output) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        member(archive, "path", text, (rows,), (np.array(names, text) for names, _ in named(job, ())))
        member(archive, "model", np.dtype(f"<U{len(job.model)}"), (), iter([np.array(job.model)]))
        for name, column in first.items():
            arrays = (part.columns[name] for part in job.parts([name]) if len(part.entries))
            member(archive, name, column.dtype, (rows, *column.shape[1:]), arrays)
    return rows


def _npy(job: Job, output: Path, main: str) -> int:
    """The main column alone. The side file names the image of each row."""
    first = next(named(job))[1][main]
    rows = 0
    with atomic_write(output.with_name(f"{output.name}.paths.txt")) as file:
        for names, _ in named(job, ()):
            rows += len(names)
            file.write("".join(f"{name}\n" for name in names).encode())
    with atomic_write(output) as file:
        arrays = (part.columns[main] for part in job.parts([main]) if len(part.entries))
        array_of(file, first.dtype, (rows, *first.shape[1:]), arrays)
    return rows


def _parquet(job: Job, output: Path, main: str) -> int:
    """path, model and every column. Vectors are FixedSizeLists, with their shape in the field's metadata."""
    check_parquet()
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = next(named(job))[1]
    fields = [pa.field("path", pa.string()), pa.field("model", pa.dictionary(pa.int32(), pa.string()))]
    for name, column in first.items():
        kind, size = pa.from_numpy_dtype(column.dtype), int(np.prod(column.shape[1:]))
        shape = json.dumps(column.shape[1:])
        fields.append(
            pa.field(name, pa.list_(kind, size) if column.ndim > 1 else kind, metadata={"shape": shape})
        )
    schema = pa.schema(fields)
    rows = 0
    with atomic_write(output) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        group: list[Any] = []
        for names, columns in named(job):
            model = pa.DictionaryArray.from_arrays(np.zeros(len(names), np.int32), [job.model])
            arrays = [pa.array(names, pa.string()), model]
            for column in columns.values():
                flat = pa.array(column.reshape(-1))
                size = int(np.prod(column.shape[1:]))
                arrays.append(pa.FixedSizeListArray.from_arrays(flat, size) if column.ndim > 1 else flat)
            group.append(pa.record_batch(arrays, schema=schema))
            rows += len(names)
            if sum(len(each) for each in group) >= GROUP_ROWS or sum(e.nbytes for e in group) >= GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(group))
                group = []
        if group:
            writer.write_table(pa.Table.from_batches(group))
    return rows


def member(
    archive: zipfile.ZipFile,
    name: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    arrays: Iterator[NDArray[Any]],
) -> None:
    """Write an array of an .npz from pieces along its first axis."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        array_of(file, dtype, shape, arrays)


def array_of(
    file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...], arrays: Iterator[NDArray[Any]]
) -> None:
    """Write what numpy.save writes, from pieces along the first axis."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(file, header)
    for array in arrays:
        file.write(np.ascontiguousarray(array, dtype).tobytes())
