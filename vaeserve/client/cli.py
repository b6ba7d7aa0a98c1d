"""The commands of `vae-client`, for one image or a whole collection."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from vaeserve.client.bulk import samples, tables
from vaeserve.client.bulk.commands import Collection
from vaeserve.client.bulk.sources import find, read
from vaeserve.client.client import Client
from vaeserve.client.errors import ClientError
from vaeserve.client.files import atomic_write
from vaeserve.client.options import BulkService, Service, with_service

SOME_FAILED = 3  # the exit status of a bulk command some of whose files failed

SHOWN = frozenset({"p_value", "elbo", "distortion", "rate", "error", "iwae"})  # scores on a terminal

app = typer.Typer(
    name="vae-client",
    help="Encode, decode, reconstruct and sample with a vaeserve service.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


def command(function: Callable[..., int | None]) -> Callable[..., None]:
    """Register a command, whose last parameter is its `service`.

    Errors that a user can fix end it with one sentence and exit status 1. It returns how many files of a
    bulk job failed.
    """
    with_options = with_service(function)

    @app.command()
    @wraps(with_options)
    def run(**options: Any) -> None:
        try:
            failed = with_options(**options)
        except (ClientError, OSError, ValueError) as error:
            print(f"vae-client: {error}", file=sys.stderr)
            raise typer.Exit(1) from error
        if failed:
            raise typer.Exit(SOME_FAILED)

    return run


Sources = Annotated[
    list[str],
    typer.Argument(
        help="Image files, folders (searched recursively), quoted globs, .tar[.gz], .txt (one path per line)."
    ),
]
Images = Annotated[list[Path], typer.Argument(help="Image files.", exists=True, dir_okay=False)]


@command
def encode(
    sources: Sources,
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", help=".parquet or .npz with path, model, mean and logvar; .npy with the mean."
        ),
    ],
    *,
    service: BulkService,
) -> int:
    """Embed images: their posterior means and log-variances, in the order of the sorted paths.

    If it is interrupted, the same command resumes. Exit status: 0 all are done; 1 stopped by an error;
    2 wrong usage; 3 done, but some files failed: <output>.failed.jsonl says which and why.
    """
    _check_suffix(output, *tables.SUFFIXES)
    return Collection("encode", sources, output, service).encode()


@command
def decode(
    latents: Annotated[Path, typer.Argument(help=".npy, or .npz with `mean` (what encode writes).")],
    output: Annotated[Path, typer.Option("-o", "--output", help=".png (contact sheet) or .npy.")],
    *,
    service: BulkService,
) -> int:
    """Decode latents to images, in their order.

    Resumable, and with the exit status, like encode.
    """
    _check_suffix(output, ".png", ".npy")
    array, its_model = _latents(latents)
    options = {"sha256": hashlib.sha256(array.tobytes()).hexdigest()}  # a changed file is another job
    service = replace(service, model=service.model or its_model)
    return Collection("decode", [str(latents)], output, service, options).decode(array)


@command
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
    *,
    service: BulkService,
) -> int:
    """Send images through encoder and decoder; prints the mean squared error of each.

    Resumable, and with the exit status, like encode.
    """
    _check_suffix(output, ".png", ".parquet", ".npz")
    return Collection("reconstruct", sources, output, service).reconstruct()


@command
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
    *,
    service: BulkService,
) -> int:
    """Draw any number of images from the model's prior.

    Image r of a seed does not depend on -n. Resumable, and with the exit status, like encode.
    """
    _check_suffix(output, *samples.SUFFIXES)
    options = {"n": n, "seed": seed, "temperature": temperature, "prior": prior, "label": label}
    return Collection("sample", [], output, service, options).sample(n)


@command
def score(
    sources: Sources,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help=".parquet or .npz. [default: one line per image on the terminal]"
        ),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option("-k", min=1, max=1000, help="Adds the importance-weighted bound with k samples."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the noise.")] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(
            help="With -o: a .png of the hundred most unusual images, and of what is unusual there."
        ),
    ] = None,
    *,
    service: BulkService,
) -> int:
    """Print how well the model explains each image, in nats, and how unusual that is (p).

    With -o any number of images, resumable, and with the exit status, like encode.
    """
    if sheet:
        _check_suffix(sheet, ".png", option="--sheet")
        if not output:
            raise typer.BadParameter("needs -o, a table of all scores", param_hint="--sheet")
    if output:
        _check_suffix(output, ".parquet", ".npz")
        options = {"k": k, "seed": seed}
        return Collection("score", sources, output, service, options).score(sheet)
    with service.client() as client:
        images = list(read(find(sources)))
        if not images:
            raise ValueError(f"no images in {', '.join(sources)}")
        columns = client.score([image.load() for image in images], k=k, seed=seed).columns()
        shown = {name: column for name, column in columns.items() if name in SHOWN}
        print(*(name.removesuffix("_value") for name in shown), "path", sep="\t")
        for row, image in enumerate(images):
            print(*(f"{column[row]:.5g}" for column in shown.values()), image.entry.name, sep="\t")
    return 0


@command
def interpolate(
    start: Annotated[Path, typer.Argument(help="An image file.", exists=True, dir_okay=False)],
    end: Annotated[Path, typer.Argument(help="The other image file.", exists=True, dir_okay=False)],
    output: Annotated[
        Path, typer.Option("-o", "--output", help=".gif or .webp (animation), .png (strip) or .npy.")
    ],
    n: Annotated[int, typer.Option("-n", min=2, help="Frames, both ends included.")] = 9,
    method: Annotated[str, typer.Option(help="slerp or lerp.")] = "slerp",
    duration: Annotated[int, typer.Option(min=20, max=10_000, help="Milliseconds of each frame.")] = 80,
    *,
    service: Service,
) -> None:
    """Interpolate between two images in the latent space."""
    query = {"n": n, "method": method, "duration": duration}
    _picture("/interpolate", [start, end], output, query, service.client())


@command
def traverse(
    image: Annotated[Path, typer.Argument(help="An image file.", exists=True, dir_okay=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help=".png (one row per dimension) or .npy.")],
    dimensions: Annotated[
        str | None, typer.Option(help="For example 3,17. [default: those with the highest KL]")
    ] = None,
    n: Annotated[int, typer.Option("-n", min=2, max=64, help="Steps of each dimension.")] = 9,
    extent: Annotated[float, typer.Option(min=0, max=10, help="From -extent to +extent.")] = 3.0,
    *,
    service: Service,
) -> None:
    """Show what single dimensions of the latent space do to an image."""
    query = {"n": n, "extent": extent} | ({"dimensions": dimensions} if dimensions else {})
    _picture("/traverse", [image], output, query, service.client())


@command
def arithmetic(
    images: Images,
    output: Annotated[Path, typer.Option("-o", "--output", help=".png or .npy.")],
    weights: Annotated[
        str | None, typer.Option(help="One for each image, for example 1,-1,1. [default: the average]")
    ] = None,
    *,
    service: Service,
) -> None:
    """Add and subtract images in the latent space."""
    query = {"weights": weights} if weights else {}
    _picture("/arithmetic", images, output, query, service.client())


@command
def similarity(
    images: Images,
    metric: Annotated[str, typer.Option(help="cosine, mahalanobis or symmetric_kl.")] = "cosine",
    *,
    service: Service,
) -> None:
    """Print the similarity or distance of each pair of images."""
    with service.client() as client:
        found = client.similarity([str(path) for path in images], metric=metric)
        for row, first in enumerate(images):
            for column in range(row + 1, len(images)):
                print(f"{found[row, column]:.5g}", first, images[column], sep="\t")


# The formats of a picture; only /interpolate has animations.
MEDIA_TYPES = {
    ".png": "image/png",
    ".npy": "application/x-npy",
    ".gif": "image/gif",
    ".webp": "image/webp",
}


def _picture(route: str, paths: Sequence[Path], output: Path, query: dict[str, Any], client: Client) -> None:
    allowed = [*MEDIA_TYPES] if route == "/interpolate" else [".png", ".npy"]
    media_type = MEDIA_TYPES[_check_suffix(output, *allowed)]
    with client:
        content = client.picture(route, [str(path) for path in paths], media_type=media_type, **query)
        with atomic_write(output) as file:
            file.write(content)
        print(output)


def _latents(path: Path) -> tuple[NDArray[Any], str | None]:
    """The latents of a file, and their model if the file names one."""
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        array, model = loaded, None
    else:
        with loaded as archive:
            if "mean" not in archive:
                raise ValueError(f"{path} has no `mean`; use a file that `vae-client encode` wrote")
            array, model = archive["mean"], str(archive["model"]) if "model" in archive else None
    if array.ndim < 2 or not len(array):
        raise ValueError(
            f"{path} is {list(array.shape)}; latents must be [n, *latent], as encode writes them"
        )
    return array, model


def _check_suffix(output: Path, *allowed: str, option: str = "-o") -> str:
    if output.suffix.lower() not in allowed:
        endings = " or ".join(each or "be a folder" for each in allowed)
        raise typer.BadParameter(f"{output} must end in {endings}", param_hint=option)
    return output.suffix.lower()
