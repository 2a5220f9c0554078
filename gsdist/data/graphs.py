"""Open graphs by name."""

from pathlib import Path

from gsdist.data import films, published_graphs, wordnet
from gsdist.data.download import data_root
from gsdist.data.graph_task import LinkTask, NodeTask
from gsdist.data.hetero_sbm import hetero_sbm
from gsdist.errors import ConfigError

__all__ = ["load_link_task", "load_node_task"]


def load_node_task(name: str, root: str | Path | None = None, *, seed: int = 0) -> NodeTask:
    """Open a graph whose nodes have classes, verified; never downloads.

    Args:
        name: films, wordnet, dblp, imdb or hetero-sbm.
        root: data root, of dblp and imdb the folder itself; default GSDIST_DATA, then
            ~/.cache/gsdist/data.
        seed: of the split, and of the graph where it is drawn.

    Raises:
        ConfigError: a name without such a task.
        DataError: the data is not there, or not the published one.
        UnsupportedSetup: torch-geometric is not installed.
    """
    folder = data_root(root)
    if name == "films":
        return films.film_genres(films.read_films(folder), seed=seed)
    if name == "wordnet":
        return wordnet.noun_classes(wordnet.read_nouns(folder), seed=seed)
    if name == "dblp":
        return published_graphs.read_dblp(folder)
    if name == "imdb":
        return published_graphs.read_imdb(folder)
    if name == "hetero-sbm":
        return hetero_sbm(seed=seed)
    raise ConfigError(f"data={name!r} has no classes to learn; mv-hetgnn-links predicts its links")


def load_link_task(name: str, root: str | Path | None = None, *, seed: int = 0) -> LinkTask:
    """Open a graph with links to predict, verified; never downloads.

    Args:
        name: films or last-fm.
        root: as of `load_node_task`.
        seed: of split and negatives, where the data does not come with them.

    Raises:
        ConfigError: a name without such a task.
        DataError: the data is not there, or not the published one.
        UnsupportedSetup: torch-geometric is not installed.
    """
    folder = data_root(root)
    if name == "films":
        return films.film_links(films.read_films(folder), seed=seed)
    if name == "last-fm":
        return published_graphs.read_last_fm(folder)
    raise ConfigError(f"data={name!r} has no links to predict; films and last-fm have")
