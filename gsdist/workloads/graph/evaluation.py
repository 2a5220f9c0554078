"""Measure embeddings: F1, a linear classifier, clustering, links, a picture in the plane."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["clustering", "f1_scores", "in_the_plane", "linear_classifier", "link_scores"]

SVM_SHARES = (0.2, 0.4, 0.6, 0.8)
_SVM_STATES = range(182318, 182328)
"""Seeds of the ten splits of the protocol that MAGNN and MV-HetGNN report."""
_K_MEANS_RUNS = 10
_PICTURE_POINTS = 1000


def f1_scores(predicted: Tensor, labels: Tensor, num_classes: int) -> dict[str, float]:
    """Return "macro_f1", the mean over classes, and "micro_f1", which here is the accuracy.

    A class that is neither there nor predicted counts 0.
    """
    counts = torch.zeros(num_classes, num_classes, dtype=torch.float64)
    counts.index_put_((labels, predicted), torch.ones((), dtype=torch.float64), accumulate=True)
    hits = counts.diagonal()
    per_class = 2 * hits / (counts.sum(0) + counts.sum(1)).clamp(min=1)
    return {
        "macro_f1": float(per_class.mean()),
        "micro_f1": float(hits.sum() / counts.sum().clamp(min=1)),
    }


def linear_classifier(
    embeddings: Tensor, labels: Tensor, shares: Sequence[float] = SVM_SHARES
) -> dict[str, float]:
    """Train a linear support vector machine on a share of the nodes and test it on the others.

    Returns the means of ten random splits, as "svm_macro_f1_20" for a share of 0.2, and so on.
    """
    from sklearn.metrics import f1_score
    from sklearn.model_selection import train_test_split
    from sklearn.svm import LinearSVC

    found: dict[str, float] = {}
    for share in shares:
        scores = []
        for state in _SVM_STATES:
            x_train, x_test, y_train, y_test = train_test_split(
                embeddings.numpy(),
                labels.numpy(),
                train_size=share,
                random_state=state,
                shuffle=True,
            )
            machine = LinearSVC(dual=False).fit(x_train, y_train)
            predicted = machine.predict(x_test)
            scores.append([f1_score(y_test, predicted, average=a) for a in ("macro", "micro")])
        macro, micro = np.mean(scores, axis=0)
        found[f"svm_macro_f1_{100 * share:.0f}"] = float(macro)
        found[f"svm_micro_f1_{100 * share:.0f}"] = float(micro)
    return found


def clustering(embeddings: Tensor, labels: Tensor, num_classes: int) -> dict[str, float]:
    """Return "nmi" and "ari" of k-means, k the number of classes, means of ten runs."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    scores = []
    for state in range(_K_MEANS_RUNS):
        found = KMeans(num_classes, n_init=1, random_state=state).fit_predict(embeddings.numpy())
        scores.append(
            (
                normalized_mutual_info_score(labels.numpy(), found),
                adjusted_rand_score(labels.numpy(), found),
            )
        )
    nmi, ari = np.mean(scores, axis=0)
    return {"nmi": float(nmi), "ari": float(ari)}


def link_scores(positive: Tensor, negative: Tensor) -> dict[str, float]:
    """Return "auc", the area under the ROC curve, and "ap", the average precision, of scores."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores = torch.cat([positive, negative]).numpy()
    truth = np.repeat([1, 0], [len(positive), len(negative)])
    return {
        "auc": float(roc_auc_score(truth, scores)),
        "ap": float(average_precision_score(truth, scores)),
    }


def in_the_plane(embeddings: Tensor, labels: Tensor) -> Mapping[str, Any]:
    """Place up to 1000 evenly chosen nodes in the plane by t-SNE: lists "x", "y" and "group"."""
    from sklearn.manifold import TSNE

    chosen = torch.linspace(0, len(labels) - 1, min(len(labels), _PICTURE_POINTS)).long()
    perplexity = min(30.0, (len(chosen) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(
        embeddings[chosen].numpy()
    )
    x, y = np.round(points.astype(np.float64), 2).T.tolist()
    return {"x": x, "y": y, "group": labels[chosen].tolist()}
