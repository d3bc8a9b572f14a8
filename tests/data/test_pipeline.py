"""The order of data is a function of (seed, step), and every example is scored once."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.data import DataError, batch_names, eval_batches, folder, train_batches


class Numbers:
    """Examples that hold their own index in image and label."""

    def __init__(self, n, size=(4, 6)):
        self.n, self.size = n, size
        self.class_names, self.num_classes, self.palette = ("a",), 250, None

    def __len__(self):
        return self.n

    def name(self, index):
        return f"number {index}"

    def __getitem__(self, index):
        return {
            "image": np.full((*self.size, 3), index, np.uint8),
            "label": np.full(self.size, index, np.int32),
            "weight": np.full(self.size, index + 0.5, np.float32),
            "class_vector": np.array([index, 1], np.float32),
        }


def take(n, batches):
    out = list(itertools.islice(batches, n))
    batches.close()
    return out


def indices(batches):
    return [b["index"].tolist() for b in batches]


def same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
            assert a[key].dtype == b[key].dtype


def test_batch_has_fixed_shapes_and_everything_the_source_gave():
    (batch,) = take(1, train_batches(Numbers(5, (4, 6)), (8, 18), 4, seed=0))
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "image": ((4, 8, 18, 3), "uint8"),
        "label": ((4, 8, 18), "int32"),
        "weight": ((4, 8, 18), "float32"),
        "class_vector": ((4, 2), "float32"),
        "index": ((4,), "int32"),
    }
    for j, i in enumerate(batch["index"]):  # scaled to 8x12, then padded to the right
        assert (batch["label"][j, :, :12] == i).all()
        assert (batch["label"][j, :, 12:] == 255).all()
        assert (batch["image"][j, :, :12] == i).all()
        assert (batch["weight"][j, :, :12] == i + 0.5).all()
        assert (batch["weight"][j, :, 12:] == 0).all()
        assert batch["class_vector"][j].tolist() == [i, 1]


def test_labels_beyond_a_byte_stay_what_they_are():
    class Many(Numbers):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"label": np.full(self.size, 200 + 100 * index, np.int32)}

    (batch,) = take(1, eval_batches(Many(2), (4, 6), 3))
    assert batch["label"][:, 0, 0].tolist() == [200, 300, 255]


def test_threads_and_cache_change_nothing():
    expected = take(6, train_batches(Numbers(7), (4, 6), 3, seed=1, threads=0, cache_bytes=0))
    for threads, cache in itertools.product((0, 1, 4), (0, 300, 2**20)):
        same(
            expected,
            take(6, train_batches(Numbers(7), (4, 6), 3, seed=1, threads=threads, cache_bytes=cache)),
        )


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_every_example_once_an_epoch(n, batch, seed):
    steps = -(-3 * n // batch)
    seen = np.concatenate(indices(take(steps, train_batches(Numbers(n), (4, 6), batch, seed=seed, threads=0)))).tolist()
    epochs = [seen[e * n : (e + 1) * n] for e in range(3)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)


def test_epochs_and_seeds_have_orders_of_their_own():
    def epochs(seed):
        return indices(take(3, train_batches(Numbers(12), (4, 6), 12, seed=seed, threads=0)))

    orders = [tuple(order) for seed in (0, 1) for order in epochs(seed)]
    assert len(set(orders)) == 6  # also: epoch 1 of seed 0 is not epoch 0 of seed 1
    assert tuple(range(12)) not in orders


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 25), st.sampled_from([(1, 6), (2, 6), (3, 6), (2, 2)]))
def test_resuming_equals_skipping_and_processes_make_the_global_batch(start, processes_and_batch):
    processes, batch = processes_and_batch
    source = Numbers(10)
    whole = take(start + 3, train_batches(source, (4, 6), batch, seed=3, threads=0))[start:]
    parts = [
        take(
            3,
            train_batches(source, (4, 6), batch, seed=3, start_step=start, process_index=p, process_count=processes),
        )
        for p in range(processes)
    ]
    joined = [{k: np.concatenate([part[k] for part in step]) for k in step[0]} for step in zip(*parts, strict=True)]
    same(whole, joined)
    for step, b in enumerate(whole, start=start):
        assert batch_names(source, 3, step, batch) == [f"number {i}" for i in b["index"]]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 3))
def test_evaluation_covers_every_example_once(n, local, processes):
    parts = [
        list(eval_batches(Numbers(n), (4, 6), local * processes, process_index=p, process_count=processes, threads=0))
        for p in range(processes)
    ]
    assert len({len(part) for part in parts}) == 1
    batches = [batch for part in parts for batch in part]
    seen = np.concatenate([batch["index"] for batch in batches])
    assert sorted(seen[seen >= 0]) == list(range(n))
    for batch in batches:
        assert batch["image"].shape == (local, 4, 6, 3)
        assert (batch["label"][batch["index"] < 0] == 255).all()
        assert (batch["weight"][batch["index"] < 0] == 0).all()


def test_evaluation_at_a_label_size_of_its_own():
    class Halves(Numbers):
        def __getitem__(self, index):
            label = np.zeros((8, 12), np.int32)
            label[:, 7:] = 1
            return {"image": np.zeros((8, 12, 3), np.uint8), "label": label}

    (batch,) = eval_batches(Halves(2), (4, 6), 2, label_size=(8, 12))
    assert batch["image"].shape == (2, 4, 6, 3)
    np.testing.assert_array_equal(batch["label"][1], Halves(1)[0]["label"])
    with pytest.raises(ValueError, match=r"aspect ratio.*use \(8, 12\)"):
        eval_batches(Halves(2), (4, 6), 2, label_size=(9, 12))


def test_bad_arguments_name_the_fix():
    with pytest.raises(ValueError, match=r"process_count=3, got 4; use 3"):
        train_batches(Numbers(5), (4, 6), 4, seed=0, process_count=3)
    with pytest.raises(ValueError, match=r"in 0\.\.1, got 2"):
        train_batches(Numbers(5), (4, 6), 4, seed=0, process_index=2, process_count=2)
    with pytest.raises(ValueError, match="empty"):
        eval_batches(Numbers(0), (4, 6), 4)


def test_iterators_close_and_a_bad_file_is_named(make_folder):
    root = make_folder(train=5)
    source = folder(root, "train")
    batches = train_batches(source, (10, 15), 2, seed=0, threads=2)
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)
    (root / "train" / "images" / "train03.png").write_text("gone")
    with pytest.raises(DataError, match=r"train03\.png"):
        take(5, train_batches(source, (10, 15), 5, seed=0, threads=2))
