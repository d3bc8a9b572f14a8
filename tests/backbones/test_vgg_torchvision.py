"""VGG beside torchvision's own, its state_dict carried both ways.

PyTorch computes in float64: before the last pooling in train mode its rounding in float32 reaches 9e-5, and ours 5e-5.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.named import fill, image

from jaxseg.backbones import vgg
from jaxseg.backbones.vgg import VGGClassifier
from jaxseg.weights import from_torchvision, read_weights, to_torchvision

pytestmark = pytest.mark.parity


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert jax.tree.all(jax.tree.map(np.array_equal, a, b))


def close(ours, theirs):
    """Within 1e-4 for numbers of order 1."""
    np.testing.assert_allclose(ours, theirs, rtol=3e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["vgg11_bn", "vgg16", "vgg16_bn"])
def test_scores_and_features_are_torchvisions(tmp_path, name):
    torch = pytest.importorskip("torch")
    from torchvision_shim import torchvision

    with torch.device("meta"):  # its 120 million numbers of fully connected layers are not needed
        theirs = getattr(torchvision.models, name)()
    for at, sizes in {0: (512 * 49, 20), 3: (20, 20), 6: (20, 7)}.items():
        theirs.classifier[at] = torch.nn.Linear(*sizes, device="meta")
    theirs = theirs.to_empty(device="cpu")
    model = VGGClassifier(7, getattr(vgg, name), fc_features=20, dropout=0.0)
    images = image(2, 75, 101)
    variables = fill(jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images))
    state = {k: torch.tensor(np.ascontiguousarray(v)) for k, v in to_torchvision(variables).items()}
    theirs.load_state_dict(state)
    torch.save(theirs.state_dict(), tmp_path / "vgg.pth")
    theirs.double()
    blank = jax.tree.map(jnp.zeros_like, variables)
    assert_equal(from_torchvision(read_weights(tmp_path / "vgg.pth"), blank), variables)

    encoder = {collection: tree["encoder"] for collection, tree in variables.items()}
    features = functools.partial(getattr(vgg, name)().apply, mutable=["batch_stats"])
    scores = functools.partial(model.apply, mutable=["batch_stats"])
    x = torch.tensor(np.asarray(images), dtype=torch.float64).permute(0, 3, 1, 2)
    for train in (False, True):
        theirs.train(train)
        for module in theirs.modules():
            if isinstance(module, torch.nn.Dropout):
                module.eval()
        expected, y = {}, x
        with torch.no_grad():
            for position, module in enumerate(theirs.features):
                y = module(y)
                expected[position] = y.movedim(1, -1).numpy()
            theirs.load_state_dict(state)  # as it was before the statistics of that pass
            expected_scores = theirs(x).numpy()
        run = jax.jit(lambda v, e, i, train=train: (scores(v, i, train=train), features(e, i, train=train)))
        (ours, ours_state), (named, _) = run(variables, encoder, images)
        np.testing.assert_allclose(ours, expected_scores, atol=1e-4)
        pools = [p for p, m in enumerate(theirs.features) if isinstance(m, torch.nn.MaxPool2d)]
        for stage, position in enumerate(pools, 1):
            close(named[f"pool{stage}"], expected[position])
            close(named[f"stride{2 ** (stage - 1)}"], expected[position - 1])
        now = from_torchvision({k: v.float().numpy() for k, v in theirs.state_dict().items()}, blank)
        for a, b in zip(jax.tree.leaves(dict(ours_state)), jax.tree.leaves(now.get("batch_stats", {})), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)
