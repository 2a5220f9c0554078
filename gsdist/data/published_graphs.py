"""Read the graphs that heterogeneous graph networks are compared on: DBLP, IMDB, Last.fm.

None of their carriers grants a licence, so nothing is fetched: a user supplies the folder, either that of
PyG's `DBLP`, `IMDB` and `LastFM` or, of DBLP, that of HeCo. Views, weight classes and settings are those
of MV-HetGNN's authors.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsdist.data.graph_task import (
    Graph,
    LinkTask,
    Metapath,
    NodeTask,
    Relation,
    add_links,
    empty_graph,
    multi_hot,
)
from gsdist.errors import DataError

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData

__all__ = ["read_dblp", "read_imdb", "read_last_fm", "split_as_magnn"]

_SPLIT_SEED = 1566911444
_DBLP_AUTHORS, _DBLP_VALIDATION, _DBLP_TEST = 4057, 400, 3257
_HECO_FILES = ("a_feat.npz", "p_feat.npz", "labels.npy", "pa.txt", "pt.txt", "pc.txt")
_IMDB_GAIN = 1.414


def split_as_magnn(count: int, validation: int, test: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split as MAGNN does: int64 numbers for training, validation and testing, each ascending."""
    order = np.random.RandomState(_SPLIT_SEED).permutation(count)
    rest = np.random.RandomState(_SPLIT_SEED).permutation(order[validation:])
    parts = (rest[test:], order[:validation], rest[:test])
    train, held, tested = (torch.from_numpy(np.sort(part)) for part in parts)
    return train, held, tested


def read_dblp(folder: Path) -> NodeTask:
    """Read DBLP in the layout of HeCo or of PyG: which of four areas is an author of?

    Raises:
        DataError: the folder has neither layout, or its files do not fit together.
    """
    if any((folder / name).exists() for name in _HECO_FILES):
        data, labels = _read_heco(folder)
    else:
        data = _read_pyg("DBLP", folder, f"one that holds {', '.join(_HECO_FILES)}, or ")
        labels = data["author"].y
        _make_sparse(data, ("author", "paper"))
    count = len(labels)
    train, validation, test = split_as_magnn(
        count, _DBLP_VALIDATION * count // _DBLP_AUTHORS, _DBLP_TEST * count // _DBLP_AUTHORS
    )
    there, back = _to("author", "paper"), _to("paper", "author")
    return NodeTask(
        graph=Graph(
            data=data,
            views={
                "author": (
                    (there, back),
                    (there, _to("paper", "term"), _to("term", "paper"), back),
                    (there, _to("paper", "conference"), _to("conference", "paper"), back),
                )
            },
            inverse=frozenset(_to(name, "paper") for name in ("author", "term", "conference")),
        ),
        target="author",
        labels=labels,
        num_classes=int(labels.max()) + 1,
        train=train,
        validation=validation,
        test=test,
    )


def read_imdb(folder: Path) -> NodeTask:
    """Read IMDB in the layout of PyG: which of three genres is a film of?

    Raises:
        DataError: the folder has not that layout.
    """
    data = _read_pyg("IMDB", folder)
    _make_sparse(data, ("movie",))
    by_director = (_to("movie", "director"), _to("director", "movie"))
    by_actor = (_to("movie", "actor"), _to("actor", "movie"))

    def around(through: Metapath, other: Metapath) -> tuple[Metapath, ...]:
        """Return the views of a person: by the films, and by the films' other people."""
        out, home = through[::-1]
        return ((out, home), (out, *other, home))

    labels: Tensor = data["movie"].y
    train, validation, test = (
        data["movie"][f"{part}_mask"].nonzero().flatten() for part in ("train", "val", "test")
    )
    return NodeTask(
        graph=Graph(
            data=data,
            views={
                "movie": (by_director, by_actor),
                "director": around(by_director, by_actor),
                "actor": around(by_actor, by_director),
            },
            inverse=frozenset({_to("movie", "director"), _to("actor", "movie")}),
        ),
        target="movie",
        labels=labels,
        num_classes=int(labels.max()) + 1,
        train=train,
        validation=validation,
        test=test,
        layers=2,
        head_bias=False,
        gain=_IMDB_GAIN,
    )


def read_last_fm(folder: Path) -> LinkTask:
    """Read Last.fm in the layout of PyG: which artists does a user listen to?

    Messages travel on the training links only.

    Raises:
        DataError: the folder has not that layout.
    """
    data = _read_pyg("LastFM", folder)
    listens, heard = _to("user", "artist"), _to("artist", "user")
    store = data[listens]
    held_out = {name: store[f"{name}_pos_edge_index"] for name in ("val", "test")}
    size = int(data["artist"].num_nodes)

    def keys(links: Tensor) -> Tensor:
        return links[0] * size + links[1]

    hidden = torch.cat([keys(links) for links in held_out.values()])
    train = store.edge_index[:, ~torch.isin(keys(store.edge_index), hidden)]
    store.edge_index = train
    data[heard].edge_index = train.flip(0)
    tags = (_to("artist", "tag"), _to("tag", "artist"))
    friends = _to("user", "user")
    return LinkTask(
        graph=Graph(
            data=data,
            views={
                "user": ((listens, heard), (listens, *tags, heard), (friends,)),
                "artist": ((heard, listens), tags, (heard, friends, listens)),
            },
            inverse=frozenset({listens, _to("tag", "artist")}),
        ),
        relation=listens,
        train=train,
        validation=held_out["val"],
        test=held_out["test"],
        validation_negatives=store["val_neg_edge_index"],
        test_negatives=store["test_neg_edge_index"],
    )


def _to(source: str, destination: str) -> Relation:
    """Return the name PyG gives to a relation of these sets."""
    return (source, "to", destination)


def _read_heco(folder: Path) -> tuple["HeteroData", Tensor]:
    try:
        features = {
            name: scipy.sparse.load_npz(folder / f"{name[0]}_feat.npz").tocoo()
            for name in ("author", "paper")
        }
        labels = np.load(folder / "labels.npy").astype(np.int64)
        edges = {
            name: np.loadtxt(folder / f"p{name[0]}.txt", np.int64, ndmin=2).T
            for name in ("author", "term", "conference")
        }
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} is not DBLP in the layout of HeCo, which has {', '.join(_HECO_FILES)}: {error}"
        ) from error
    data = empty_graph()
    for name, matrix in features.items():
        data[name].x = multi_hot(
            matrix.row.astype(np.int64), matrix.col.astype(np.int64), matrix.shape
        )
    for name in ("term", "conference"):
        data[name].num_nodes = int(edges[name][1].max()) + 1
    _check_heco(folder, features, labels, edges)
    for name, pairs in edges.items():
        # The names of PyG, whose reverse relations are not called rev_to.
        add_links(data, _to("paper", name), pairs, back=_to(name, "paper"))
    return data, torch.from_numpy(labels)


def _check_heco(
    folder: Path,
    features: dict[str, Any],
    labels: NDArray[np.int64],
    edges: dict[str, NDArray[np.int64]],
) -> None:
    authors, papers = features["author"].shape[0], features["paper"].shape[0]
    if labels.shape != (authors,):
        raise DataError(
            f"{folder}: labels.npy has shape {labels.shape} and a_feat.npz {authors} rows; expected one "
            "label per author"
        )
    found = max(int(pairs[0].max()) for pairs in edges.values())
    if found >= papers or int(edges["author"][1].max()) >= authors:
        raise DataError(
            f"{folder}: the links name papers up to {found} and authors up to "
            f"{int(edges['author'][1].max())}, but there are features of {papers} and {authors}"
        )


def _read_pyg(name: str, folder: Path, otherwise: str = "") -> "HeteroData":
    empty_graph()  # says how to install PyG
    import torch_geometric.datasets

    if not any((folder / part).is_dir() for part in ("processed", "raw")):
        raise DataError(
            f"{folder} does not hold {name}; name a folder by --data-root: {otherwise}one made by "
            f"torch_geometric.datasets.{name}(root), which downloads it"
        )
    return getattr(torch_geometric.datasets, name)(str(folder))[0]


def _make_sparse(data: "HeteroData", with_features: tuple[str, ...]) -> None:
    """Make the features of these types sparse and drop those of the others, as the authors do."""
    for name in data.node_types:
        x = data[name].get("x")
        if x is None:
            continue
        if name in with_features:
            data[name].x = x.to_sparse()
        else:
            data[name].num_nodes = len(x)
            del data[name].x
