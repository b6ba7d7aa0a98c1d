"""`vae-client`: the service from the command line, one image or a whole folder."""

import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import track

from client.client import Client, Posterior, Reconstructions
from client.errors import BadRequest, ClientError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"})
ROWS = 32  # files of one request: enough to fill a batch, few enough that the progress bar moves

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
Paths = Annotated[list[Path], typer.Argument(help="Image files and folders (searched recursively).")]
LOCAL = "http://127.0.0.1:8000"


@app.command()
def encode(
    paths: Paths,
    output: Annotated[Path, typer.Option("-o", "--output", help=".npz with path, mean, logvar and model.")],
    url: Url = LOCAL,
    api_key: ApiKey = None,
    model: Model = None,
    concurrency: Concurrency = 4,
) -> None:
    """Embed images: their posterior means and log-variances, in the order of the sorted paths."""
    _check_suffix(output, ".npz")
    with _sentences(), Client(url, api_key=api_key, model=model) as client:
        files, answers, failed = _each(client.encode, _images(paths), concurrency)
        if answers:
            arrays = {
                "path": np.array([str(file) for file in files]),
                "mean": np.concatenate([answer.mean for answer in answers]),
                "logvar": np.concatenate([answer.logvar for answer in answers]),
                "model": np.array(_one_model(answers)),
            }
            _save(output, _npz(arrays))
            print(f"{output}: {len(files)} of {len(files) + len(failed)} images, {arrays['model']}")
        _report(failed)


@app.command()
def decode(
    latents: Annotated[Path, typer.Argument(help=".npy, or .npz with `mean` (what encode writes).")],
    output: Annotated[Path, typer.Option("-o", "--output", help=".png (contact sheet) or .npy.")],
    url: Url = LOCAL,
    api_key: ApiKey = None,
    model: Model = None,
) -> None:
    """Decode latents to images."""
    suffix = _check_suffix(output, ".png", ".npy")
    with _sentences():
        loaded = np.load(latents, allow_pickle=False)
        array: NDArray[Any] = loaded if isinstance(loaded, np.ndarray) else loaded["mean"]
        with Client(url, api_key=api_key, model=model) as client:
            _save(
                output,
                client.picture("/decode", array) if suffix == ".png" else _npy(client.decode(array)),
            )
        print(f"{output}: {len(array)} images")


@app.command()
def reconstruct(
    paths: Paths,
    output: Annotated[
        Path, typer.Option("-o", "--output", help=".png (contact sheet) or .npz with path, images and error.")
    ],
    url: Url = LOCAL,
    api_key: ApiKey = None,
    model: Model = None,
    concurrency: Concurrency = 4,
) -> None:
    """Send images through encoder and decoder; prints the mean squared error of each."""
    suffix = _check_suffix(output, ".png", ".npz")
    with _sentences(), Client(url, api_key=api_key, model=model) as client:
        files, answers, failed = _each(client.reconstruct, _images(paths), concurrency)
        if answers:
            errors = np.concatenate([answer.error for answer in answers])
            for file, error in zip(files, errors, strict=True):
                print(f"{error:.6f}  {file}")
            if suffix == ".png":
                _save(output, client.picture("/reconstruct", [str(file) for file in files]))
            else:
                images = np.concatenate([answer.images for answer in answers])
                paths_ = np.array([str(file) for file in files])
                _save(output, _npz({"path": paths_, "images": images, "error": errors}))
        _report(failed)


@app.command()
def sample(
    output: Annotated[Path, typer.Option("-o", "--output", help=".png (contact sheet) or .npy.")],
    n: Annotated[int, typer.Option("-n", min=1, help="How many images.")] = 1,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same images.")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=10, help="Scales the prior's deviation.")] = 1.0,
    url: Url = LOCAL,
    api_key: ApiKey = None,
    model: Model = None,
) -> None:
    """Draw images from the model's prior."""
    suffix = _check_suffix(output, ".png", ".npy")
    with _sentences(), Client(url, api_key=api_key, model=model) as client:
        if suffix == ".png":
            query = {"n": n, "temperature": temperature} | ({} if seed is None else {"seed": seed})
            _save(output, client.picture("/sample", None, **query))
        else:
            _save(output, _npy(client.sample(n, seed=seed, temperature=temperature).images))
        print(f"{output}: {n} images")


def main() -> None:
    app()


Failed = list[tuple[Path, str]]
Answer = TypeVar("Answer", Posterior, Reconstructions)


def _each(
    call: Callable[[list[str]], Answer], files: list[Path], concurrency: int
) -> tuple[list[Path], list[Answer], Failed]:
    """Call the service on all files, several requests at a time: (good files, answers, failures)."""
    chunks = [files[at : at + ROWS] for at in range(0, len(files), ROWS)]
    good: list[Path] = []
    answers: list[Answer] = []
    failed: Failed = []
    with ThreadPoolExecutor(concurrency) as pool:
        results = pool.map(lambda chunk: _chunk(call, chunk), chunks)  # in order, whichever comes back first
        for part in track(results, total=len(chunks), transient=True, disable=not sys.stderr.isatty()):
            for file, answer in part:
                if isinstance(answer, str):
                    failed += [(file[0], answer)]
                else:
                    good += file
                    answers += [answer]
    return good, answers, failed


def _chunk(call: Callable[[list[str]], Answer], files: list[Path]) -> list[tuple[list[Path], Answer | str]]:
    """The answer for these files; if it is a refusal, for each alone: a bad file costs no other."""
    try:
        return [(files, call([str(file) for file in files]))]
    except (BadRequest, OSError) as error:
        if len(files) == 1:
            return [(files, str(error))]
    return [part for file in files for part in _chunk(call, [file])]


def _images(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
        elif path.exists():
            files.append(path)
        else:
            raise typer.BadParameter(f"{path} is not there")
    if not files:
        raise typer.BadParameter(f"no images ({', '.join(sorted(SUFFIXES))}) in {', '.join(map(str, paths))}")
    return files


def _one_model(answers: Sequence[Any]) -> str:
    models = {answer.model for answer in answers}
    if len(models) > 1:
        raise ClientError(
            f"the service changed its model meanwhile ({', '.join(sorted(models))}); start again"
        )
    return str(models.pop())


def _report(failed: Failed) -> None:
    """Failures come last, where they are seen, and make the exit status 1."""
    for file, reason in failed:
        print(f"failed: {file}: {reason}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


def _check_suffix(output: Path, *allowed: str) -> str:
    if output.suffix.lower() not in allowed:
        raise typer.BadParameter(f"{output} must end in {' or '.join(allowed)}", param_hint="-o")
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
