"""Images over devices: the logits, the gradients and the labels of one device, in a share of its memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.named import image
from test_zoo import narrow

import jaxseg
from jaxseg import parallel
from jaxseg.clustering import kmeans, ncut
from jaxseg.data.canvas import MEAN_COLOUR
from jaxseg.predict import predictor, sharded, sharded_predictor
from jaxseg.programs import forward, training

# halos and crops; unpooling; pooling over the whole image; dilation and an image-wide branch; multiplied gates
KINDS = ("unet_small", "segnet_basic", "pspnet_resnet50", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large")
PLAIN = (("unet_small", (8, 1)),)  # compiling for eight devices takes a quarter of a minute
IN_WIDTH = ("deeplabv3_resnet50",)
# each device has a row (and a column) at stride 32, and every layer's halo comes from others
SIZES = {(8, 1): (256, 32), (2, 4): (64, 128)}
IN_FLOAT64 = [("pspnet_resnet50", (2, 4)), ("deeplabv3_resnet50", (8, 1))]
EACH = [(n, (8, 1)) for n in KINDS] + [(n, (2, 4)) for n in IN_WIDTH]


@pytest.fixture(autouse=True)
def _compiled_programs_end_with_their_test():
    yield
    jax.clear_caches()  # those of every test together have more memory maps than a process may


def mesh_of(spatial, width=1):
    return parallel.make_mesh(data=1, spatial=spatial, width=width, devices=jax.devices()[: spatial * width])


def over(spatial, width=1):
    return parallel.over_mesh(mesh_of(spatial, width))


@functools.cache
def program(name, dtype):
    """Logits in eval and train mode and the gradients of a sum of either, as one compiled function."""
    model, variables, _ = narrow(name)
    undropped = {field: 0.0 for field in ("dropout", "aux_dropout") if hasattr(model, field)}
    model = model.clone(dtype=dtype, **undropped)

    @jax.jit
    def run(variables, images):
        def loss(params, train):
            output, state = model.apply({**variables, "params": params}, images, train=train, mutable=["batch_stats"])
            return (output.logits**2).mean(), (output.logits, state)

        results = [jax.grad(functools.partial(loss, train=t), has_aux=True)(variables["params"]) for t in (False, True)]
        return {mode: (g, *aux) for mode, (g, aux) in zip(("eval", "train"), results, strict=True)}

    return variables, run


def run_on(name, shares, size, dtype=jnp.float32):
    variables, run = program(name, dtype)
    placement, images = over(*shares), np.asarray(image(2, *size), dtype)
    variables = jax.tree.map(lambda x: np.asarray(x, dtype), variables)
    with jax.set_mesh(mesh_of(*shares)):  # as the step of `over_mesh` is traced
        return run(placement.put_state(variables), placement.put_batch({"image": images})["image"])


@pytest.mark.parametrize(
    ("name", "shares"), [pytest.param(*each, marks=[pytest.mark.slow] * (each not in PLAIN)) for each in EACH]
)
def test_eight_shares_of_an_image_are_the_image(name, shares):
    """Logits to 1e-4; gradients, as the zoo's against PyTorch's, to 1e-3 of the layer's largest."""
    one, eight = (run_on(name, n, SIZES[shares]) for n in ((1, 1), shares))
    for mode in one:
        (gradients, logits, state), (shared_gradients, shared, shared_state) = one[mode], eight[mode]
        assert len(shared.sharding.device_set) == 8
        np.testing.assert_allclose(shared, logits, rtol=3e-5, atol=1e-4 * min(1, np.std(logits)), err_msg=mode)
        if (name, shares) in IN_FLOAT64:  # there to 1e-7: here a ReLU near 0 may fall on either side
            gradients, shared_gradients = {}, {}
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(shared_gradients), strict=True
        ):
            layer = functools.reduce(lambda tree, key: tree[key.key], path[:-1], gradients)
            # of the layer: a bias before a batch norm has a gradient of rounding only
            scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(layer))
            np.testing.assert_allclose(b, a, atol=1e-3 * max(1e-1, scale), err_msg=f"{mode} {path}")
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(shared_state), strict=True):
            np.testing.assert_allclose(b, a, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shares"), IN_FLOAT64)
def test_in_float64_it_is_the_same_function(name, shares):
    """What is left above is rounding, which batch norms over few pixels amplify."""
    with jax.enable_x64(True):
        one, eight = (run_on(name, n, SIZES[shares], jnp.float64) for n in ((1, 1), shares))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(b, a, rtol=1e-7, atol=1e-9)


def temporaries(model, spatial, size):
    """Bytes of temporary memory a device, of the forward pass of one image."""
    placement, (apply, variables, inputs) = over(spatial), forward(model, size, 1)
    arguments = placement.shape_saved(variables), *placement.shape_batch(inputs)
    return jax.jit(apply).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_memory_falls_with_the_devices():
    model = jaxseg.create_model("unet", 5, features=(16, 32))
    one, eight = (temporaries(model, n, (1024, 128)) for n in (1, 8))
    assert one / eight > 6  # the rest is rows at the borders: 7.4 with jax 0.10.2, 6.05 with 0.12.0


def test_fsdp_holds_a_share_of_parameters_and_optimizer_state():
    placement = parallel.over_mesh(parallel.make_mesh(data=1, fsdp=8))
    fns, shapes = training(jaxseg.create_model("unet", 21, features=(64, 128, 256)), (64, 64), 8)
    key = jax.random.key(0)
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(fns.init, key, shapes))
    whole = sum(x.nbytes for x in jax.tree.leaves((state.params, state.opt_state)))
    placed = placement.put_state(state)
    held = [x.addressable_shards[0].data.nbytes for x in jax.tree.leaves((placed.params, placed.opt_state))]
    assert sum(held) < 1.05 * whole / 8  # small arrays are whole everywhere
    moments = [x for x in jax.tree.leaves(placed.opt_state) if x.size > parallel.FSDP_MINIMUM]
    assert moments
    assert all(x.addressable_shards[0].data.size == x.size // 8 for x in moments)


def test_labels_are_those_of_one_device(monkeypatch):
    model, variables, _ = narrow("pspnet_resnet50")
    photos = [np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8) for i, size in enumerate([(250, 70)] * 2)]
    canvases = []
    monkeypatch.setattr(sharded, "shared_canvas", lambda *args, **shares: (canvases.append(args), (256, 70))[1])
    predict = sharded_predictor(model, variables, over(4, 2), batch=2)
    predict(photos)
    one = predictor(model, variables, (256, 70))
    for photo, labels in zip(photos, predict(photos), strict=True):
        assert labels.shape == (250, 70)
        filled = np.empty((256, 70, 3), np.uint8)
        filled[:] = MEAN_COLOUR
        filled[:250] = photo
        assert (labels == one(filled)[:250]).mean() > 0.999  # ties may round otherwise
    assert len(canvases) == 1, "a canvas takes a trace of the model: of photographs of one size there is one"


@pytest.mark.parametrize(("shares", "canvas"), [((8, 1), (256, 70)), ((1, 8), (250, 72)), ((3, 4), (252, 72))])
def test_a_canvas_divides_into_its_shares(shares, canvas):
    model, variables, _ = narrow("pspnet_resnet50")
    assert sharded.shared_canvas(model, variables, (250, 70), shares) == canvas


def test_what_cannot_be_shared_is_refused():
    model, variables, _ = narrow("unet_valid")
    image = np.zeros((572, 572, 3), np.uint8)
    with pytest.raises(ValueError, match="seamless tiles: leave --shard out"):
        sharded_predictor(model, variables, over(4))([image])
    with pytest.raises(ValueError, match=r"no image of 572x572 in 8x1 shares \(UNetValid cannot pool"):
        sharded_predictor(model, variables, over(8))([image])
    placement = parallel.over_mesh(parallel.make_mesh(data=4, spatial=2))
    with pytest.raises(ValueError, match=r"axes of a mesh are 1 or more, got data=4 fsdp=1 spatial=2 width=0"):
        parallel.make_mesh(data=4, spatial=2, width=0)
    with pytest.raises(ValueError, match=r"data=2 fsdp=1 spatial=2 width=3 needs 12 devices, there are 8"):
        parallel.make_mesh(data=2, spatial=2, width=3)
    with pytest.raises(ValueError, match="a batch of 1 does not divide over 4 devices"):
        sharded_predictor(model, variables, placement)


def test_what_is_no_image_need_not_divide():
    placement = over(2, 4)
    batch = {"image": np.zeros((1, 8, 8, 3), np.uint8), "label": np.zeros((1, 9, 12), np.int32)}
    batch |= {"boxes": np.arange(20, dtype=np.float32).reshape(1, 5, 4), "masks": np.zeros((1, 5, 8, 8), bool)}
    placed = placement.put_batch(batch)
    assert placed["image"].addressable_shards[0].data.shape == (1, 4, 2, 3)
    assert placed["label"].addressable_shards[0].data.shape == (1, 9, 3)
    np.testing.assert_array_equal(placed["boxes"], batch["boxes"])
    assert placement.shape_batch(batch)["masks"].shape == (1, 5, 8, 8)
    with pytest.raises(ValueError, match=r"images of 9x8 do not divide over jit spatial=2 width=4; use such as 10x8"):
        placement.put_batch({"image": np.zeros((1, 9, 8, 3), np.uint8)})


def rows_of(x):
    mesh = parallel.make_mesh(data=1, spatial=8)
    return jax.device_put(x, jax.NamedSharding(mesh, jax.P("spatial")))


def test_kmeans_of_an_image_in_shares():
    pixels = np.asarray(image(1, 64, 48)[0])
    cluster = jax.jit(lambda image: kmeans(image.reshape(-1, 3), 5, key=jax.random.key(0)).labels.reshape(64, 48))
    np.testing.assert_array_equal(cluster(rows_of(pixels)), cluster(pixels))


def test_kmeans_moves_empty_clusters_alike():
    """Ten groups of equal points, and ten centroids of which eight lie far from all."""
    points = np.random.default_rng(0).random((10, 3), np.float32).repeat(512, 0)
    start = np.concatenate([points[:2], np.full((8, 3), 9, np.float32)])
    one, eight = (kmeans(x, 10, init=start) for x in (points, rows_of(points)))
    np.testing.assert_array_equal(eight.labels, one.labels)
    assert len(np.unique(one.labels)) == 10
    assert float(one.inertia) < 1e-6


@pytest.mark.parametrize("size", [(512, 512), (480, 328)])  # the second in blocks that are padded
def test_memory_of_kmeans_falls_with_the_devices(size):
    def temporaries(spatial):
        mesh = parallel.make_mesh(data=1, spatial=spatial, devices=jax.devices()[:spatial])
        image = jax.ShapeDtypeStruct((*size, 3), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P("spatial")))
        cluster = jax.jit(lambda image: kmeans(image.reshape(-1, 3), 4, key=jax.random.key(0)).labels)
        return cluster.lower(image).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(1) / temporaries(8) > 4


@pytest.mark.slow
def test_ncut_of_an_image_in_shares():
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.random((4, 3, 3)), np.ones((8, 8, 1)))
    blocks = np.clip(blocks + 0.02 * rng.standard_normal((32, 24, 3)), 0, 1)
    cut = functools.partial(ncut, num_segments=4, space="rgb", radius=3.0, sigma_distance=4.0, sigma_contour=None)
    one, eight = cut(jnp.asarray(blocks, jnp.float32)), cut(rows_of(np.asarray(blocks, np.float32)))
    np.testing.assert_allclose(eight.eigenvectors, one.eigenvectors, atol=1e-4)
    np.testing.assert_array_equal(eight.labels, one.labels)
