"""FID, Inception score, precision and recall on fixed features, against naive definitions."""

import numpy as np
import pytest
import scipy.linalg

from jaxseg.metrics.generation import frechet_distance, inception_score, perceptual_path_length, precision_recall

RNG = np.random.default_rng(0)
A = RNG.standard_normal((80, 5)) @ RNG.standard_normal((5, 5))
B = RNG.standard_normal((60, 5)) * 2 + 1


def test_frechet_distance():
    a, b = (np.cov(x, rowvar=False) for x in (A, B))
    root = scipy.linalg.sqrtm(a @ b)
    expected = np.square(A.mean(0) - B.mean(0)).sum() + np.trace(a + b - 2 * root.real)
    np.testing.assert_allclose(frechet_distance(A, B), expected, rtol=1e-8)
    np.testing.assert_allclose(frechet_distance(A, A), 0, atol=1e-8)
    np.testing.assert_allclose(frechet_distance(A, A + 3), 9 * 5, rtol=1e-8)
    flat = A * [1, 1, 0, 0, 0]  # fewer dimensions than features, as 2048 of a few hundred images
    np.testing.assert_allclose(frechet_distance(flat, flat + 1), 5, rtol=1e-6)
    one, other = A[:, :1], B[:, :1]
    by_hand = (one.mean() - other.mean()) ** 2 + (one.std(ddof=1) - other.std(ddof=1)) ** 2
    np.testing.assert_allclose(frechet_distance(one, other), by_hand, rtol=1e-8)


def test_few_images_have_no_distance_below_zero():
    few = RNG.gamma(1, size=(5, 400))
    np.testing.assert_allclose(frechet_distance(few, few), 0, atol=1e-9)
    np.testing.assert_allclose(frechet_distance(few, few[::-1] + 1), 400, rtol=1e-12)


def test_inception_score():
    certain = np.eye(4).repeat(10, 0)[RNG.permutation(40)]
    assert inception_score(certain, splits=1)[0] == pytest.approx(4)
    assert inception_score(np.full((40, 4), 0.25))[0] == pytest.approx(1)
    p = RNG.dirichlet(np.ones(5), 30)
    scores = []
    for part in (p[:10], p[10:20], p[20:]):
        marginal = part.mean(0)
        divergences = [sum(row[j] * np.log(row[j] / marginal[j]) for j in range(5)) for row in part]
        scores.append(np.exp(np.mean(divergences)))
    np.testing.assert_allclose(inception_score(p, 3), (np.mean(scores), np.std(scores)), rtol=1e-10)
    with pytest.raises(ValueError, match="apply a softmax"):
        inception_score(p * 2)


def naive_coverage(points, centres, k):
    def radius(i):
        return sorted(np.linalg.norm(centres[i] - c) for c in centres)[k]

    inside = [any(np.linalg.norm(p - c) <= radius(i) for i, c in enumerate(centres)) for p in points]
    return np.mean(inside)


@pytest.mark.parametrize("block", [7, 4096])
def test_precision_and_recall(block):
    images, reals = A[:25], B[:20]
    ours = precision_recall(images, reals, block=block)
    np.testing.assert_allclose(ours, (naive_coverage(images, reals, 3), naive_coverage(reals, images, 3)))
    assert 0 < min(ours) < 1
    assert precision_recall(A, A) == (1, 1)
    assert precision_recall(A, A + 1000) == (0, 0)


def test_features_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\(80, 5\) and \(60, 4\)"):
        frechet_distance(A, B[:, :4])
    with pytest.raises(ValueError, match="rows, 4 or more for 3 neighbours, of one length"):
        precision_recall(A[:3], B)
    unknown = A.copy()
    unknown[3, 2] = np.nan
    for metric in (frechet_distance, precision_recall):
        with pytest.raises(ValueError, match="finite; row 3 of a set is not"):
            metric(B, unknown)
    for neighbours in (0, -1):
        with pytest.raises(ValueError, match=f"one neighbour or more, got {neighbours}"):
            precision_recall(A, B, neighbours=neighbours)
    with pytest.raises(ValueError, match="rows, 61 or more for 60 neighbours"):
        precision_recall(A, B, neighbours=60)
    with pytest.raises(ValueError, match="a block of one row or more, got 0"):
        precision_recall(A, B, block=0)


def test_path_length_of_a_linear_generator_is_that_of_its_chords():
    first, second = A[:40], A[40:]
    matrix = RNG.standard_normal((5, 7))
    squared = lambda a, b: np.square(a - b).sum(-1)  # noqa: E731
    at = RNG.random(40)
    lengths = np.square((second - first) @ matrix).sum(1)
    ours = perceptual_path_length(lambda x: x @ matrix, squared, first, second, at)
    np.testing.assert_allclose(ours, lengths.mean(), rtol=1e-4)  # of forty, none lies beyond a hundredth
    # on the sphere a chord of a small step is the angle between the ends
    cosines = np.sum(first * second, 1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    arcs = np.arccos(cosines) ** 2
    ours = perceptual_path_length(lambda x: x, squared, first, second, at, spherical=True)
    np.testing.assert_allclose(ours, arcs.mean(), rtol=1e-4)
    for words, said in (
        ({"epsilon": 0.0}, "epsilon is a step above 0, got 0.0"),
        ({"distance": lambda a, b: np.square(a - b).sum()}, r"a number for each of 40 pairs, got \(\)"),
        ({"at": at[:3]}, r"pairs are as many .* \(3,\)"),
        ({"second": second[:7]}, "pairs are as many firsts, seconds and t: got 40, 7"),
        ({"first": first * 0, "spherical": True}, "a latent of zero lies on no sphere"),
        ({"at": np.where(np.arange(40) == 3, np.nan, at)}, "distances are finite; that of pair 3 is not"),
    ):
        with pytest.raises(ValueError, match=said):
            perceptual_path_length(
                lambda x: x, **{"distance": squared, "first": first, "second": second, "at": at} | words
            )


@pytest.mark.parametrize(("n", "kept"), [(2, slice(0, 2)), (101, slice(1, 100)), (256, slice(2, 254))])
def test_path_length_leaves_out_what_the_published_code_does(n, kept):
    # of n sorted distances those between the places floor(0.01 (n - 1)) and ceil(0.99 (n - 1)), both included
    lengths = np.random.default_rng(n).permutation(np.arange(1.0, n + 1) ** 2)
    distance = lambda a, b: np.square(1e-4) * lengths  # noqa: E731
    latents = np.ones((n, 3))
    ours = perceptual_path_length(lambda x: x, distance, latents, latents, np.zeros(n))
    np.testing.assert_allclose(ours, np.sort(lengths)[kept].mean(), rtol=1e-9)


def test_inception_score_of_splits_that_do_not_divide():
    p = np.random.default_rng(3).dirichlet(np.ones(4), 1003)
    naive = []
    for i in range(10):  # the published code's bounds
        part = p[i * 1003 // 10 : (i + 1) * 1003 // 10]
        naive.append(np.exp(np.mean([np.sum(row * np.log(row / part.mean(0))) for row in part])))
    np.testing.assert_allclose(inception_score(p), (np.mean(naive), np.std(naive)), rtol=1e-12)
    with pytest.raises(ValueError, match="at least one split, got 0"):
        inception_score(p, 0)
    with pytest.raises(ValueError, match=r"rows, 10 or more for 10 splits, of one length in every set; got \(5, 4\)"):
        inception_score(p[:5])
