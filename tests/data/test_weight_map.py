"""Border weights against equation 2 written out pixel by pixel."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.data import border_weights, folder, shapes, train_batches, with_border_weights
from jaxseg.data.weight_map import label_instances


def naive(instances, w0, sigma):
    h, w = instances.shape
    out = np.ones((h, w))
    for y in range(h):
        for x in range(w):
            if instances[y, x]:
                continue
            nearest = []
            for k in set(instances.ravel().tolist()) - {0}:
                ys, xs = np.nonzero(instances == k)
                nearest.append(np.sqrt(((ys - y) ** 2 + (xs - x) ** 2).min()))
            if len(nearest) > 1:
                d1, d2 = sorted(nearest)[:2]
                out[y, x] += w0 * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2))
    return out


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 5), st.sampled_from([(10.0, 5.0), (4.0, 0.7)]))
def test_border_weights_are_equation_two(seed, count, constants):
    rng = np.random.default_rng(seed)
    instances = np.zeros((14, 17), np.int32)
    for k in range(1, count + 1):
        y, x = rng.integers(0, 12), rng.integers(0, 15)
        instances[y : y + rng.integers(1, 4), x : x + rng.integers(1, 4)] = k
    np.testing.assert_allclose(border_weights(instances, *constants), naive(instances, *constants), rtol=1e-5)


def test_label_instances_tells_touching_classes_apart():
    label = np.array([[1, 0, 1, 2], [0, 1, 255, 2], [0, 0, 0, 0], [1, 0, 0, 0]], np.int32)
    instances = label_instances(label)
    groups = [instances[label == c] for c in (0, 255)]
    assert all((g == 0).all() for g in groups)
    assert len(np.unique(instances)) == 1 + 3  # a diagonal chain of 1, the 2s, and the lone 1


@pytest.mark.parametrize("kind", ["shapes", "folder"])
def test_weights_ride_in_the_batch(kind, tiny_shapes, make_folder):
    plain = shapes("train", data_dir=tiny_shapes) if kind == "shapes" else folder(make_folder(), "train")
    source = pickle.loads(pickle.dumps(with_border_weights(plain)))
    assert (len(source), source.num_classes, source.name(1)) == (len(plain), plain.num_classes, plain.name(1))
    assert source.problems == ()
    batches = train_batches(source, (40, 60), 2, seed=0)
    batch = next(batches)
    batches.close()
    assert batch["weight"].shape == (2, 40, 60)
    assert batch["weight"].dtype == np.float32
    assert (batch["weight"][batch["label"] > 0] <= 1).all()  # 0 in padding, 1 in shapes
