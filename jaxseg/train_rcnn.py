"""R-CNN's last two stages, fitted on the features of its network: a linear SVM a class, and box regression."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int, PyTree

__all__ = ["fit_box_regression", "fit_svms", "with_box_regression", "with_svms"]


def fit_svms(
    features: Float[np.ndarray, "n f"],
    classes: Int[np.ndarray, "n"],
    num_classes: int,
    *,
    c: float = 1e-3,
    bias: float = 10.0,
    positive_weight: float = 2.0,
    scale: float = 20.0,
) -> tuple[Float[np.ndarray, "f k"], Float[np.ndarray, "k"]]:
    """Kernel and bias of a linear SVM for each class against all else (Girshick et al. 2014, section 2.3).

    `classes` are those of the objects' own boxes, 0 for the background, by R-CNN what overlaps no object by 0.3, and
    -1 for what is neither, which no SVM sees. The numbers are those of R-CNN's code, which scales features to a mean
    norm of `scale` first; kernel and bias are for features as they are. A class without an object never scores. Raises
    ImportError where scikit-learn is missing, ValueError for classes out of range.
    """
    try:
        from sklearn.svm import LinearSVC
    except ImportError:
        raise ImportError("R-CNN's SVMs are scikit-learn's: pip install 'jaxseg[rcnn]'") from None
    if classes.size and not -1 <= classes.min() <= classes.max() < num_classes:
        raise ValueError(f"classes are -1..{num_classes - 1}, got {classes.min()}..{classes.max()}")
    norm = float(np.linalg.norm(features, axis=1).mean()) or 1.0
    kernel = np.zeros((features.shape[1], num_classes), np.float32)
    offset = np.full(num_classes, -1e3, np.float32)
    for cls in range(1, num_classes):
        seen = classes >= 0
        positive = classes[seen] == cls
        if not positive.any() or positive.all():
            continue
        svm = LinearSVC(
            C=c, loss="hinge", intercept_scaling=bias, class_weight={1: positive_weight, 0: 1.0}, max_iter=20_000
        )
        svm.fit(features[seen] * (scale / norm), positive.astype(int))
        kernel[:, cls], offset[cls] = svm.coef_[0] * (scale / norm), svm.intercept_[0]
    return kernel, offset


def fit_box_regression(
    features: Float[np.ndarray, "n p"],
    deltas: Float[np.ndarray, "n 4"],
    classes: Int[np.ndarray, "n"],
    num_classes: int,
    *,
    ridge: float = 1000.0,
) -> tuple[Float[np.ndarray, "p k"], Float[np.ndarray, "k"]]:
    """Kernel `[p, 4 k]` and bias of ridge regression to `deltas`, class by class (Girshick et al. 2014, appendix C).

    `features` are pool5's of boxes that overlap an object of their class by 0.6 at least, `deltas` those that
    `encode_boxes` gives with the weights that the model decodes by. The mean is not penalised. A class without a box
    has zero: its boxes stay.
    """
    kernel = np.zeros((features.shape[1], num_classes, 4), np.float32)
    offset = np.zeros((num_classes, 4), np.float32)
    for cls in range(1, num_classes):
        chosen = classes == cls
        if not chosen.any():
            continue
        x, y = features[chosen].astype(np.float64), deltas[chosen].astype(np.float64)
        mean_x, mean_y = x.mean(0), y.mean(0)
        x, y = x - mean_x, y - mean_y
        if len(x) < x.shape[1]:  # the dual: as many unknowns as boxes, not as features
            weights = x.T @ np.linalg.solve(x @ x.T + ridge * np.eye(len(x)), y)
        else:
            weights = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ y)
        kernel[:, cls], offset[cls] = weights, mean_y - mean_x @ weights
    return kernel.reshape(features.shape[1], -1), offset.reshape(-1)


def _with(variables: Mapping[str, Any], name: str, fitted: tuple[np.ndarray, np.ndarray]) -> PyTree:
    params = dict(variables["params"])
    old = params[name]["kernel"].shape
    if fitted[0].shape != old:
        raise ValueError(f"{name} of the model is {old}, what was fitted {fitted[0].shape}")
    params[name] = {"kernel": np.asarray(fitted[0], np.float32), "bias": np.asarray(fitted[1], np.float32)}
    return {**variables, "params": params}


def with_svms(variables: Mapping[str, Any], fitted: tuple[np.ndarray, np.ndarray]) -> PyTree:
    """Variables of an `RCNN` whose classes are scored by what `fit_svms` gave; the model has `svm=True`."""
    return _with(variables, "cls_score", fitted)


def with_box_regression(variables: Mapping[str, Any], fitted: tuple[np.ndarray, np.ndarray]) -> PyTree:
    """Variables of an `RCNN` that refines boxes by what `fit_box_regression` gave."""
    return _with(variables, "bbox_pred", fitted)
