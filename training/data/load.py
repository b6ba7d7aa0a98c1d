"""The images of a source: the name of a set, a folder, or a file of arrays."""

from pathlib import Path

from training.data.images import DataError, Images, ImageTarget, Say
from training.data.sources import SETS, data_folder

FEW = 500  # images; a smaller set gets a warning
AS_IT_IS = ImageTarget()


def load(source: str, target: ImageTarget = AS_IT_IS, say: Say = lambda text: None) -> Images:
    """The images of `source`: the name of a set, a folder, or a .npz or .npy file.

    `say` receives a line for each guess and for skipped files. Raises DataError, and DownloadError if a set
    cannot be downloaded.
    """
    path = Path(source)
    # Imported here, because each kind of source needs its own libraries.
    if source in SETS:
        from training.data import named

        images = named.load(source, data_folder(), target, say)
    elif path.is_dir():
        from training.data.folder import read_folder

        images = read_folder(path, target, say)
    elif path.suffix in (".npz", ".npy") and path.is_file():
        from training.data.arrays import read_arrays

        images = read_arrays(path, target, say)
    elif path.exists():
        raise DataError(f"{source} is neither a folder of images nor a .npz or .npy file")
    else:
        raise DataError(
            f"there is no data set and no file {source!r}; use {', '.join(SETS)}, a folder of images, "
            "or a .npz or .npy file"
        )
    if len(images.pixels) < FEW:
        say(f"warning: {len(images.pixels)} images are few: a good model needs thousands")
    return images
