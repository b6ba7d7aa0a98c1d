"""Writes the parts of a bulk job as one .parquet, .npz or .npy, with one part in memory at a time.

Output and side files are written atomically.
"""

import json
import zipfile
from collections.abc import Iterator, Sequence
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


def merge(job: Job, output: Path, main: str) -> None:
    """Write the output of a finished job. Images that failed are left out.

    `main` is the column of a .npy, which has `<output>.paths.txt` beside it.
    """
    match output.suffix.lower():
        case ".parquet":
            _parquet(job, output)
        case ".npz":
            _npz(job, output)
        case _:
            _npy(job, output, main)


def named(job: Job, columns: Sequence[str] | None = None) -> Iterator[tuple[list[str], Columns]]:
    """The names of the images that have results, and their columns, part by part."""
    all_names = job.names()
    for part in job.parts(columns):
        names = list(islice(all_names, part.stop - part.start))
        if len(part.entries):
            yield [names[entry - part.start] for entry in part.entries], part.columns


def check_parquet() -> None:
    """Raise ClientError before the work starts if pyarrow is missing."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ClientError(f"Parquet needs pyarrow ({error}): pip install 'vaeserve[parquet]'") from error


def failures_path(output: Path) -> Path:
    """The side file that lists the images without a result."""
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


def _npz(job: Job, output: Path) -> None:
    """path, model and every column, as numpy.savez writes them, one column after the other."""
    text = np.dtype(f"<U{max(len(name) for names, _ in named(job, ()) for name in names)}")
    with atomic_write(output) as file, zipfile.ZipFile(file, "w") as archive:
        with member(archive, "path") as array:
            write_array(array, text, (job.rows,), (np.array(names, text) for names, _ in named(job, ())))
        with member(archive, "model") as array:
            np.save(array, np.array(job.model))
        for name in next(named(job))[1]:
            with member(archive, name) as array:
                write_column(array, job, name)


def _npy(job: Job, output: Path, main: str) -> None:
    """The main column alone. The side file names the image of each row."""
    with atomic_write(output.with_name(f"{output.name}.paths.txt")) as file:
        for names, _ in named(job, ()):
            file.write("".join(f"{name}\n" for name in names).encode())
    with atomic_write(output) as file:
        write_column(file, job, main)


def _parquet(job: Job, output: Path) -> None:
    """path, model and every column. Vectors are FixedSizeLists, with their shape in the field's metadata."""
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
            if sum(len(each) for each in group) >= GROUP_ROWS or sum(e.nbytes for e in group) >= GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(group))
                group = []
        if group:
            writer.write_table(pa.Table.from_batches(group))


def member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """A new array of an .npz, open for writing."""
    return archive.open(f"{name}.npy", "w", force_zip64=True)


def write_column(file: IO[bytes], job: Job, name: str) -> None:
    """Write a column as numpy.save does, part by part."""
    first = next(job.column(name))
    write_array(file, first.dtype, (job.rows, *first.shape[1:]), job.column(name))


def write_array(
    file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...], pieces: Iterator[NDArray[Any]]
) -> None:
    """Write an array as numpy.save does, from pieces along its first axis."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(file, header)
    for piece in pieces:
        file.write(np.ascontiguousarray(piece, dtype).tobytes())
