"""`vae-client`: the service from the command line, one image or a whole folder."""

import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import track

from vaeserve.client.bulk import samples as drawn
from vaeserve.client.bulk import tables
from vaeserve.client.bulk.collection import Collection
from vaeserve.client.bulk.prefetch import ahead
from vaeserve.client.bulk.sources import find, read
from vaeserve.client.client import Client
from vaeserve.client.errors import BadRequest, ClientError
from vaeserve.client.png import png

ROWS = 32  # images of one request: enough to fill a batch, few enough that the progress bar moves

SOME_FAILED = 3  # the exit status of a bulk command

SHOWN = frozenset({"p_value", "elbo", "distortion", "rate", "error", "iwae"})  # of the scores, on a terminal

app = typer.Typer(
    name="vae-client",
    help="Encode, decode, reconstruct and sample with a vaeserve service.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)

Url = Annotated[str, typer.Option(envvar="VAESERVE_URL", help="Address of the service.")]
ApiKey = Annotated[str | None, typer.Option(envvar="VAESERVE_API_KEY", show_envvar=True)]
Model = Annotated[str | None, typer.Option(help="name or name@version. [default: the service's]")]
Concurrency = Annotated[int, typer.Option(min=1, max=64, help="Requests in flight at a time.")]
Sources = Annotated[
    list[str],
    typer.Argument(
        help="Image files, folders (searched recursively), quoted globs, .tar[.gz], or .txt: a path a line."
    ),
]
Images = Annotated[list[Path], typer.Argument(help="Image files.", exists=True, dir_okay=False)]
Patience = Annotated[
    float, typer.Option(min=0, help="Seconds to wait for a service that is away or full, before giving up.")
]
LOCAL = "http://127.0.0.1:8000"


@app.command()
def encode(
    sources: Sources,
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", help=".parquet or .npz with path, model, mean and logvar; .npy with the mean."
        ),
    ],
    url: Url = LOCAL,
    api_key: ApiKey = None,
    model: Model = None,
    concurrency: Concurrency = 4,
    patience: Patience = 300,
) -> None:
    """Embed images: their posterior means and log-variances, in the order of the sorted paths.

    Stopped or killed, the same command goes on where it was. Exit status: 0 all are done; 1 stopped by an
    error; 2 wrong usage; 3 done, but some files failed: <output>.failed.jsonl says which and why.
    """
    _check_suffix(output, *tables.SUFFIXES)
    with _sentences():
        _end(Collection("encode", sources, output, url, api_key, model, concurrency, patience).embed())


@app.command()
def decode(
    latents: Annotated[Path, typer.Argument(help=".npy, or .npz with `mean` (what encode writes).")],
    output: Annotated[Path, typer.Option("-o", "--output", help=".png (contact sheet) or .npy.")],
    url: Url = LOCAL,
    api_key: ApiKey = None,
    model: Model = None,
    concurrency: Concurrency = 4,
) -> None:
    """Decode latents to images, in their order."""
    suffix = _check_suffix(output, ".png", ".npy")
    with _sentences():
        array, its_model = _latents(latents)
        names = [f"row {index}" for index in range(len(array))]
        with Client(url, api_key=api_key, model=model or its_model) as client:
            good, answers, failed = _each(client.decode, array, names, concurrency)
        if answers:
            images = np.concatenate(answers)
            _save(output, png(images) if suffix == ".png" else _npy(images))
            print(f"{output}: {len(good)} of {len(array)} images")
        _report(failed)


@app.command()
def reconstruct(
    sources: Sources,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help=".png (contact sheet), or .parquet or .npz with path, images, error.",
        ),
    ],
    url: Url = LOCAL,
    api_key: ApiKey = None,
    model: Model = None,
    concurrency: Concurrency = 4,
    patience: Patience = 300,
) -> None:
    """Send images through encoder and decoder; prints the mean squared error of each.

    Resumable, and with the exit status, like encode.
    """
    _check_suffix(output, ".png", ".parquet", ".npz")
    with _sentences():
        _end(Collection("reconstruct", sources, output, url, api_key, model, concurrency, patience).rebuild())


@app.command()
def sample(
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", help=".png (contact sheet), .npy, .npz, or a folder: <row>.png for each."
        ),
    ],
    n: Annotated[int, typer.Option("-n", min=1, help="How many images.")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same images.")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=10, help="Scales the prior's deviation.")] = 1.0,
    prior: Annotated[str | None, typer.Option(help="normal, mixture or flow. [default: the model's]")] = None,
    label: Annotated[str | None, typer.Option(help="Only of this label: its name or number.")] = None,
    url: Url = LOCAL,
    api_key: ApiKey = None,
    model: Model = None,
    concurrency: Concurrency = 4,
    patience: Patience = 300,
) -> None:
    """Draw any number of images from the model's prior.

    Image r of a seed is the same whatever -n is. Resumable, and with the exit status, like encode.
    """
    _check_suffix(output, *drawn.SUFFIXES)
    options = {"n": n, "seed": seed, "temperature": temperature, "prior": prior, "label": label}
    with _sentences():
        Collection("sample", [], output, url, api_key, model, concurrency, patience, options).draw(n)


@app.command()
def score(
    sources: Sources,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help=".parquet or .npz. [default: a line for each on the terminal]"),
    ] = None,
    k: Annotated[
        int | None, typer.Option("-k", min=1, max=1000, help="Also the bound with k samples an image.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the noise.")] = None,
    url: Url = LOCAL,
    api_key: ApiKey = None,
    model: Model = None,
    concurrency: Concurrency = 4,
    patience: Patience = 300,
) -> None:
    """Say how well the model explains each image, in nats, and how unusual that is (p).

    With -o any number of images, resumable, and with the exit status, like encode.
    """
    if output:
        _check_suffix(output, ".parquet", ".npz")
        options = {"k": k, "seed": seed}
        job = Collection("score", sources, output, url, api_key, model, concurrency, patience, options)
        with _sentences():
            _end(job.judge())
        return
    with _sentences(), Client(url, api_key=api_key, model=model) as client:
        images = list(read(find(sources)))
        if not images:
            raise ValueError(f"no images in {', '.join(sources)}")
        columns = client.score([image.load() for image in images], k=k, seed=seed).columns()
        shown = {name: column for name, column in columns.items() if name in SHOWN}
        print(*(name.removesuffix("_value") for name in shown), "path", sep="\t")
        for row, image in enumerate(images):
            print(*(f"{column[row]:.5g}" for column in shown.values()), image.entry.name, sep="\t")


@app.command()
def interpolate(
    start: Annotated[Path, typer.Argument(help="An image file.", exists=True, dir_okay=False)],
    end: Annotated[Path, typer.Argument(help="Another one.", exists=True, dir_okay=False)],
    output: Annotated[
        Path, typer.Option("-o", "--output", help=".gif or .webp (animation), .png (strip) or .npy.")
    ],
    n: Annotated[int, typer.Option("-n", min=2, help="Frames, both ends included.")] = 9,
    method: Annotated[str, typer.Option(help="slerp or lerp.")] = "slerp",
    duration: Annotated[int, typer.Option(min=20, max=10_000, help="Milliseconds of each frame.")] = 80,
    url: Url = LOCAL,
    api_key: ApiKey = None,
    model: Model = None,
) -> None:
    """Go from one image to another through the latent space."""
    query = {"n": n, "method": method, "duration": duration}
    _picture("/interpolate", [start, end], output, query, Client(url, api_key=api_key, model=model))


@app.command()
def traverse(
    image: Annotated[Path, typer.Argument(help="An image file.", exists=True, dir_okay=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help=".png (a row a dimension) or .npy.")],
    dimensions: Annotated[
        str | None, typer.Option(help="As in 3,17. [default: those with the highest KL]")
    ] = None,
    n: Annotated[int, typer.Option("-n", min=2, max=64, help="Steps of each dimension.")] = 9,
    extent: Annotated[float, typer.Option(min=0, max=10, help="From -extent to +extent.")] = 3.0,
    url: Url = LOCAL,
    api_key: ApiKey = None,
    model: Model = None,
) -> None:
    """Show what single dimensions of the latent space do to an image."""
    query = {"n": n, "extent": extent} | ({"dimensions": dimensions} if dimensions else {})
    _picture("/traverse", [image], output, query, Client(url, api_key=api_key, model=model))


@app.command()
def arithmetic(
    images: Images,
    output: Annotated[Path, typer.Option("-o", "--output", help=".png or .npy.")],
    weights: Annotated[
        str | None, typer.Option(help="One for each image, as in 1,-1,1. [default: the average]")
    ] = None,
    url: Url = LOCAL,
    api_key: ApiKey = None,
    model: Model = None,
) -> None:
    """Add and subtract images in the latent space."""
    query = {"weights": weights} if weights else {}
    _picture("/arithmetic", images, output, query, Client(url, api_key=api_key, model=model))


@app.command()
def similarity(
    images: Images,
    metric: Annotated[str, typer.Option(help="cosine, mahalanobis or symmetric_kl.")] = "cosine",
    url: Url = LOCAL,
    api_key: ApiKey = None,
    model: Model = None,
) -> None:
    """Print how alike the images are (cosine), or how far apart (the others): a line for each pair."""
    with _sentences(), Client(url, api_key=api_key, model=model) as client:
        found = client.similarity([str(path) for path in images], metric=metric)
        for row, first in enumerate(images):
            for column in range(row + 1, len(images)):
                print(f"{found[row, column]:.5g}", first, images[column], sep="\t")


# What each route can be saved as; the service says which of them a route has.
MEDIA_TYPES = {
    ".png": "image/png",
    ".npy": "application/x-npy",
    ".gif": "image/gif",
    ".webp": "image/webp",
}


def _picture(route: str, paths: Sequence[Path], output: Path, query: dict[str, Any], client: Client) -> None:
    allowed = [*MEDIA_TYPES] if route == "/interpolate" else [".png", ".npy"]
    media_type = MEDIA_TYPES[_check_suffix(output, *allowed)]
    with _sentences(), client:
        _save(output, client.picture(route, [str(path) for path in paths], media_type=media_type, **query))
        print(output)


def main() -> None:
    app()


Failed = list[tuple[str, str]]
T = TypeVar("T")
Rows = Sequence[str] | NDArray[Any]


def _each(
    call: Callable[[Any], T], rows: Rows, names: Sequence[str], concurrency: int
) -> tuple[list[int], list[T], Failed]:
    """Call the service on all rows, several requests at a time: (indices of good rows, answers, failures)."""
    good: list[int] = []
    answers: list[T] = []
    failed: Failed = []
    chunks = [range(at, min(at + ROWS, len(rows))) for at in range(0, len(rows), ROWS)]
    for part in _progress([partial(_chunk, call, rows, chunk) for chunk in chunks], concurrency):
        for indices, answer in part:
            if isinstance(answer, _Refusal):
                failed.append((names[indices[0]], answer.reason))
            else:
                good += indices
                answers.append(answer)
    return good, answers, failed


class _Refusal(NamedTuple):
    reason: str


def _chunk(call: Callable[[Any], T], rows: Rows, indices: range) -> list[tuple[range, T | _Refusal]]:
    """The answer for these rows; if it is a refusal, for each alone: a bad one costs no other."""
    try:
        return [(indices, call(rows[indices.start : indices.stop]))]
    except (BadRequest, OSError) as error:
        if len(indices) == 1:
            return [(indices, _Refusal(str(error)))]
    return [part for index in indices for part in _chunk(call, rows, range(index, index + 1))]


def _progress(jobs: Sequence[Callable[[], T]], concurrency: int) -> Iterator[T]:
    """The results in the order of the jobs, `concurrency` of them running, with a bar on a terminal."""
    with ThreadPoolExecutor(concurrency) as pool:
        try:
            results = ahead(pool, jobs, 2 * concurrency)
            yield from track(results, total=len(jobs), transient=True, disable=not sys.stderr.isatty())
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C only what is in flight is waited for


def _latents(path: Path) -> tuple[NDArray[Any], str | None]:
    """The latents of a file, and the model that they belong to if the file says so."""
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        array, model = loaded, None
    else:
        with loaded as archive:
            if "mean" not in archive:
                raise ValueError(f"{path} has no `mean`; give it what `vae-client encode` wrote")
            array, model = archive["mean"], str(archive["model"]) if "model" in archive else None
    if array.ndim < 2 or not len(array):
        raise ValueError(f"{path} has no latents [n, *latent] but {list(array.shape)}")
    return array, model


def _end(failed: int) -> None:
    """The exit status of a command that is done, though perhaps not with every file."""
    if failed:
        raise typer.Exit(SOME_FAILED)


def _report(failed: Failed) -> None:
    """Failures come last, where they are seen, and make the exit status 1."""
    for name, reason in failed:
        print(f"failed: {name}: {reason}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


def _check_suffix(output: Path, *allowed: str) -> str:
    if output.suffix.lower() not in allowed:
        endings = " or ".join(each or "be a folder" for each in allowed)
        raise typer.BadParameter(f"{output} must end in {endings}", param_hint="-o")
    return output.suffix.lower()


def _save(path: Path, content: bytes) -> None:
    """All or nothing: a file that is there is complete."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as draft:
        try:
            draft.write(content)
            draft.flush()
            os.fsync(draft.fileno())
        except BaseException:
            os.unlink(draft.name)
            raise
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(draft.name, 0o666 & ~umask)  # a temporary file is private, the user's file is as any other
    os.replace(draft.name, path)


def _npz(arrays: dict[str, NDArray[Any]]) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


@contextmanager
def _sentences() -> Iterator[None]:
    """What a user can mend ends in one sentence and exit status 1, not in a traceback."""
    try:
        yield
    except (ClientError, OSError, ValueError) as error:
        print(f"vae-client: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    main()
