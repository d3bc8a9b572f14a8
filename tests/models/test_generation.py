"""ProGAN's and StyleGAN's networks: counts, genforce's numbers, growth, styles, noise, labels, errors."""

import functools
import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.named import value
from tiers import some_slow

import jaxseg
from jaxseg.models import model_source
from jaxseg.models.configurations import CONFIGURATIONS
from jaxseg.models.stylegan import mix_styles
from jaxseg.weights import WeightsMismatch, from_genforce, load_weights, save_weights, to_genforce
from jaxseg.weights.convert import published_arguments
from jaxseg.weights.genforce import blank_variables

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "genforce.npz"
NAMES = ("progan_generator", "progan_discriminator", "stylegan_generator", "stylegan_discriminator")
COUNTS = {  # at 1024x1024, as the official repositories print them
    "progan_generator": 23_079_115,
    "progan_discriminator": 23_087_249,
    "stylegan_generator": 26_219_627,
    "stylegan_discriminator": 23_087_249,
}
CASES = (
    *((name, 64, 0) for name in NAMES),
    *((name, 128, 0) for name in ("stylegan_generator", "stylegan_discriminator")),  # fused from here on
    *((name, 16, 3) for name in NAMES),
)
NARROW = {"base_features": 512, "max_features": 16}


def equalized(path, leaf):
    """Weights as training starts with and leaves them: kernels of order one, the mapping's of order a hundred."""
    name = "/".join(key.key for key in path)
    array = value(name.replace("kernel", "weight"), leaf.shape) * (
        5 if name.endswith(("kernel", "const", "map")) else 1
    )
    return jnp.asarray(array * np.float32(100 if "mapping/dense" in name else 1))


@functools.cache
def case(name, resolution=16, classes=0, **fields):
    if name == "progan_generator" and classes:
        fields = {"norm_before_class": True} | fields  # as genforce has it
    model = jaxseg.create_model(name, resolution=resolution, num_classes=classes, **NARROW, **fields)
    return model, jax.tree_util.tree_map_with_path(equalized, blank_variables(model))


@functools.cache
def run(name, resolution=16, classes=0, stage=None, **fields):
    """The compiled network, with its variables in it."""
    model, variables = case(name, resolution, classes, **fields)
    return functools.partial(jax.jit(functools.partial(model.apply, train=False, stage=stage)), variables)


def latents(n=4):
    return jnp.asarray(np.random.default_rng(0).standard_normal((n, 512), np.float32))


def images_of(resolution, n=4):
    return jnp.asarray(np.random.default_rng(1).standard_normal((n, resolution, resolution, 3), np.float32))


def labels_of(classes, n=4):
    return jnp.arange(n, dtype=jnp.int32) * 2 % classes if classes else None


@functools.cache
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def cut(x):
    return np.asarray(x)[:2, ::3, ::5]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_as_published(name):
    variables = blank_variables(jaxseg.create_model(name))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == COUNTS[name]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert " et al. 201" in model_source(name)


@pytest.mark.parametrize("case_of", [c for c in CASES if c[0].endswith("generator")])
def test_images_are_genforces(case_of):
    name, resolution, classes = case_of
    psi = {"truncation_psi": 0.7} if name.startswith("style") else {}
    extra = (labels_of(classes),) if classes else ()
    image = run(*case_of)(latents(), *extra, **psi, fade=1.0)
    expected = golden()[f"{name} {resolution} {classes} image"]
    assert image.shape == (4, resolution, resolution, 3)
    assert 0.3 < expected.std() < 3
    np.testing.assert_allclose(cut(image), expected, atol=1e-3)
    if psi:
        psi = {"truncation_psi": 1.0}
    image = run(*case_of)(latents(), *extra, **psi, fade=0.3)
    np.testing.assert_allclose(cut(image), golden()[f"{name} {resolution} {classes} faded"], atol=1e-3)


@pytest.mark.parametrize("case_of", [c for c in CASES if c[0].endswith("discriminator")])
def test_scores_and_gradients_are_genforces(case_of):
    """Scores, R1's gradient, R1 itself, and its own gradient."""
    name, resolution, classes = case_of
    model, variables = case(*case_of)
    extra = (labels_of(classes),) if classes and name.startswith("style") else ()

    @jax.jit
    def penalties(params):
        def penalty(params):
            def score(images):
                output = model.apply({"params": params}, images, *extra, train=True)
                return output.score.sum(), output

            gradient, output = jax.grad(score, has_aux=True)(images_of(resolution))
            return jnp.square(gradient).sum((1, 2, 3)).mean(), (gradient, output)

        return jax.value_and_grad(penalty, has_aux=True)(params)

    (penalty, (gradient, output)), of_params = penalties(variables["params"])
    expected = {k.split(" ", 3)[3]: v for k, v in golden().items() if k.startswith(f"{name} {resolution} {classes} ")}
    np.testing.assert_allclose(output.score, expected["score"][:, 0], atol=1e-4)
    if output.class_logits is not None:
        np.testing.assert_allclose(output.class_logits, expected["score"][:, 1:], atol=1e-4)
    np.testing.assert_allclose(cut(gradient), expected["gradient"], atol=1e-5)
    np.testing.assert_allclose(penalty, expected["penalty"][0], rtol=1e-4)
    second = of_params[f"conv_{resolution}_1"]["kernel"][1, 1].T[:, :4]
    scale = np.abs(expected["penalty gradient"]).max()
    # rounding is 2e-6; one value of StyleGAN's at 128 lies at its leaky ReLU's kink, either side, and is worth 1e-4
    np.testing.assert_allclose(second, expected["penalty gradient"], atol=(2e-4 if resolution == 128 else 1e-5) * scale)


@pytest.mark.parametrize("name", NAMES)
def test_files_there_and_back(name, tmp_path):
    model, variables = case(name, 16, 3 if name.startswith("style") else 0)
    save_weights(tmp_path / "w.safetensors", model, variables)
    loaded = load_weights(tmp_path / "w.safetensors", model)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, variables))


def test_a_conditional_progan_of_genforces_is_known_by_its_first_layer(tmp_path):
    """Its latent is normalised before; ours, whose weights would fit, is refused, and kept by our own names."""
    model, variables = case("progan_generator", 16, 3)
    save_weights(tmp_path / "theirs.safetensors", model, variables)
    arguments, _ = published_arguments("progan_generator", tmp_path / "theirs.safetensors", **NARROW)
    assert jaxseg.create_model(**arguments) == model
    papers = model.clone(norm_before_class=False)
    with pytest.raises(WeightsMismatch, match="create the model with norm_before_class=True"):
        load_weights(tmp_path / "theirs.safetensors", papers)
    save_weights(tmp_path / "ours.safetensors", papers, variables)
    loaded = load_weights(tmp_path / "ours.safetensors", papers)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, variables))


def test_kernels_after_doublings_are_flipped_from_128_on():
    model, variables = case("stylegan_generator", 128)
    state = to_genforce(model, variables)
    for n, size in ((8, 64), (10, 128)):
        kernel = np.asarray(variables["params"]["synthesis"][f"conv_{size}_0"]["kernel"]).transpose(3, 2, 0, 1)
        flipped = kernel[..., ::-1, ::-1]
        np.testing.assert_array_equal(state[f"synthesis.layer{n}.weight"], flipped if size == 128 else kernel)
    assert jax.tree.all(jax.tree.map(np.array_equal, from_genforce(state, model), variables))


@pytest.mark.parametrize("smooth", [True, False])
def test_of_several_networks_the_one_that_is_asked_for(smooth, tmp_path):
    """A checkpoint of genforce's has the generator, its average, and the discriminator."""
    state = {}
    for network, name in (("generator", NAMES[2]), ("generator_smooth", NAMES[2]), ("discriminator", NAMES[3])):
        model, variables = case(name)
        named = to_genforce(
            model, variables if network != "generator" or not smooth else jax.tree.map(np.negative, variables)
        )
        state |= {
            f"{network}.{entry}": array for entry, array in named.items() if smooth or network != "generator_smooth"
        }
    if smooth:  # as DataParallel names them
        state = {".module.".join(entry.split(".", 1)): array for entry, array in state.items()}
    np.savez(tmp_path / "checkpoint.npz", **state)
    for name in NAMES[2:]:
        model, variables = case(name)
        assert jax.tree.all(jax.tree.map(np.array_equal, load_weights(tmp_path / "checkpoint.npz", model), variables))
        arguments, _ = published_arguments(name, tmp_path / "checkpoint.npz")
        assert (arguments["resolution"], arguments["num_classes"]) == (16, 0)
    with pytest.raises(WeightsMismatch, match=r"missing: layer0\.bias"):
        load_weights(tmp_path / "checkpoint.npz", case(NAMES[0])[0])


def test_what_does_not_fit_is_named():
    model, variables = case("progan_generator")
    state = to_genforce(model, variables)
    parallel = {f"module.{name}": array for name, array in state.items()}
    assert jax.tree.all(jax.tree.map(np.array_equal, from_genforce(parallel, model), variables))
    state["layer9.weight"] = state.pop("layer1.weight")
    state["output0.weight"] = np.zeros((3, 5, 1, 1), np.float32)
    with pytest.raises(
        WeightsMismatch, match=r"at 16x16: missing: layer1\.weight; unexpected: layer9\.weight; misshapen: output0"
    ):
        from_genforce(state, model)


def test_the_other_discriminator_is_refused_though_its_weights_fit():
    (progan, of_progan), (stylegan, of_stylegan) = (case(f"{kind}_discriminator") for kind in ("progan", "stylegan"))
    with pytest.raises(WeightsMismatch, match=r"StyleGAN's .* has blur=False .*; create stylegan_discriminator"):
        from_genforce(to_genforce(stylegan, of_stylegan), progan)
    with pytest.raises(WeightsMismatch, match=r"ProGAN's .* has blur=True .*; create progan_discriminator"):
        from_genforce(to_genforce(progan, of_progan), stylegan)


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_is_one_program_and_uses_its_parameters(name):
    """Two fades, one trace; gradients for what the stage uses, zeros for the rest, in the same tree."""
    model, variables = case(name)
    inputs = latents() if name.endswith("generator") else images_of(8)
    traces = []

    @jax.jit
    def gradient(params, fade):
        traces.append(None)

        def loss(params):
            output = model.apply({**variables, "params": params}, inputs, stage=1, fade=fade, train=False)
            return sum(jnp.square(x).mean() for x in jax.tree.leaves(output))

        return jax.grad(loss)(params)

    gradients = [gradient(variables["params"], fade) for fade in (0.0, 0.5)]
    assert len(traces) == 1
    assert jax.tree.structure(gradients[1]) == jax.tree.structure(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients[1]):
        used = "16" not in jax.tree_util.keystr(path)
        assert jnp.isfinite(leaf).all(), path
        assert bool((leaf != 0).any()) == used, path
    unseen = [p for p, x in jax.tree_util.tree_leaves_with_path(gradients[0]) if not (x != 0).any()]
    assert any("_8" in jax.tree_util.keystr(path) for path in unseen)  # a new resolution fades in from nothing


@pytest.mark.parametrize("name", ["progan_generator", "stylegan_generator"])
def test_a_generator_grows_without_a_jump(name):
    before, after = (run(name, stage=stage)(latents(), fade=fade) for stage, fade in ((1, 1.0), (2, 0.0)))
    np.testing.assert_allclose(after, before.repeat(2, 1).repeat(2, 2), atol=1e-6)


@pytest.mark.parametrize("name", ["progan_discriminator", "stylegan_discriminator"])
def test_a_discriminator_grows_without_a_jump(name):
    images = images_of(8)
    before = run(name, stage=1)(images, fade=1.0)
    after = run(name, stage=2)(images.repeat(2, 1).repeat(2, 2), fade=0.0)
    np.testing.assert_allclose(after.score, before.score, atol=1e-5)


def test_truncation_and_given_styles():
    model, variables = case("stylegan_generator")
    synthesize = jax.jit(functools.partial(model.apply, method="synthesize", train=False))
    w = model.apply(variables, latents(), method="map")
    # a + (w - a) rounds where w is whole, and instance norms pass a relative 1e-6 on as 1e-4
    generate = run("stylegan_generator")
    np.testing.assert_allclose(synthesize(variables, w), generate(latents(), truncation_psi=1.0), atol=3e-4)
    mean = jnp.broadcast_to(variables["w_average"]["mean"], w.shape)
    np.testing.assert_allclose(synthesize(variables, mean), generate(latents(), truncation_psi=0.0), atol=1e-5)
    first = model.apply(variables, jnp.stack([w] * model.layers, 1), 0.5, 2, method="truncate")
    np.testing.assert_allclose(first[:, 2], w)
    np.testing.assert_allclose(first[:, 1], (w + mean) / 2, rtol=1e-5, atol=1e-6)
    one = model.apply(variables, w[:1], 0.5, 2, method="truncate")  # as `map` gives it
    np.testing.assert_array_equal(one, first[:1])
    with pytest.raises(ValueError, match=r"truncate takes w of shape .*, got \(4, 3\)"):
        model.apply(variables, w[:, :3], 0.5, method="truncate")


def test_noise_is_by_key_by_image_and_by_layer():
    model, variables = case("stylegan_generator")

    @jax.jit
    def generate(key, strength):
        same = jnp.broadcast_to(latents()[:1], (2, 512))
        return model.apply(variables, same, noise_strength=strength, rngs={"noise": key}, train=False)

    ones = jnp.ones(model.layers)
    a, b = (generate(jax.random.key(i), ones) for i in (0, 1))
    np.testing.assert_array_equal(a, generate(jax.random.key(0), ones))
    assert np.abs(np.asarray(a - b)).max() > 1e-2
    assert np.abs(np.asarray(a[0] - a[1])).max() > 1e-2
    none = generate(jax.random.key(0), 0 * ones)
    np.testing.assert_array_equal(none, generate(jax.random.key(1), 0 * ones))
    np.testing.assert_allclose(none[0], none[1], atol=1e-5)  # two places of a batch; noise is 1e-2 and more
    fixed = run("stylegan_generator")(latents()[:1])
    assert np.abs(np.asarray(fixed[0] - a[0])).max() > 1e-2


def test_training_mixes_an_image_at_a_time_and_follows_w():
    model, variables = case("stylegan_generator", w_average_decay=0.75)

    @functools.partial(jax.jit, static_argnames="share")
    def train(key, share):
        mixed = model.clone(mixing=share)
        rngs = {"noise": jax.random.key(5), "mixing": key}
        return mixed.apply(variables, latents(16), rngs=rngs, train=True, mutable=["w_average"])

    (half, state), (never, _) = train(jax.random.key(0), 0.5), train(jax.random.key(0), 0.0)
    changed = np.abs(np.asarray(half - never)).max((1, 2, 3)) > 1e-3
    assert 0 < changed.sum() < 16
    w = model.apply(variables, latents(16), method="map")
    old = variables["w_average"]["mean"]
    np.testing.assert_allclose(state["w_average"]["mean"], 0.75 * old + 0.25 * w.mean(0), rtol=1e-4, atol=1e-5)
    a, b = jnp.zeros((3, 4, 2)), jnp.ones((3, 4, 2))
    for crossover in (jnp.array([1, 3, 4]), [1, 3, 4]):
        np.testing.assert_array_equal(mix_styles(a, b, crossover)[..., 0].sum(1), [3, 1, 0])
    np.testing.assert_array_equal(mix_styles(a, b, 3), mix_styles(a, b, jnp.array([3, 3, 3])))
    with pytest.raises(ValueError, match=r"of one shape .* got \(1, 4, 2\), \(3, 4, 2\)"):
        inspect.unwrap(mix_styles)(a[:1], b, jnp.array([1, 3, 4]))


def test_labels_matter():
    for name, fields in (
        ("progan_generator", ()),
        ("stylegan_generator", ()),
        ("stylegan_discriminator", ()),
        ("progan_discriminator", (("condition", "planes"),)),
    ):
        inputs = latents() if name.endswith("generator") else images_of(16)
        a, b = (run(name, 16, 3, **dict(fields))(inputs, labels) for labels in (labels_of(3), (labels_of(3) + 1) % 3))
        assert np.abs(np.asarray(jax.tree.leaves(a)[0] - jax.tree.leaves(b)[0])).max() > 1e-3, name


@pytest.mark.parametrize("fields", [{"constant_input": False}, {"noise": False, "mixing": 0.0}])
def test_configurations_between_progan_and_stylegan(fields):
    image = run("stylegan_generator", **fields)(latents())
    assert np.isfinite(image).all()
    assert np.ptp(np.asarray(image)) > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_computes_what_float32_does(name):
    """To 4 % of the output's deviation: a hundred roundings of 2^-9 each, and norms by few pixels."""
    model, variables = case(name)
    inputs = latents() if name.endswith("generator") else images_of(16)
    half = model.clone(dtype=jnp.bfloat16)
    ours = jax.jit(functools.partial(half.apply, train=False))(variables, inputs)
    theirs = run(name)(inputs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == jnp.float32
        b = np.asarray(b)
        assert 0 < np.sqrt(np.mean((a - b) ** 2)) < 0.04 * max(b.std(), np.abs(b).mean())
    fresh = jax.eval_shape(functools.partial(half.init, train=False), jax.random.key(0), inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("dtype", some_slow([jnp.float32, jnp.bfloat16], {jnp.float32}))
def test_no_variance_is_no_nan(dtype):
    """A generator of zeros, whose instance norms have none, and a batch of one flat image, with R1's own gradient."""
    model, variables = case("stylegan_generator")
    blank = jax.tree.map(jnp.zeros_like, variables)
    generate = model.clone(dtype=dtype).apply

    def total(params):
        return generate({**blank, "params": params}, 0 * latents(), train=False).sum()

    gradients = jax.jit(jax.grad(total))(blank["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    model, variables = case("stylegan_discriminator")

    def penalty(params):
        score = lambda x: model.clone(dtype=dtype).apply({"params": params}, x, train=True).score.sum()  # noqa: E731
        return jnp.square(jax.grad(score)(jnp.full((4, 16, 16, 3), 0.5))).sum()

    for params in (variables["params"], jax.tree.map(jnp.zeros_like, variables["params"])):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.jit(jax.grad(penalty))(params)))


@pytest.mark.parametrize(
    ("name", "fields", "inputs", "options", "said"),
    [
        ("stylegan_generator", {"resolution": 48}, (latents(),), {}, "resolution 48 is none; use 64"),
        ("progan_generator", {"resolution": 4}, (latents(),), {}, "resolution 4 is none; use 8"),
        ("progan_generator", {}, (latents()[:, :100],), {}, r"latents of shape \(n, 512\), got \(4, 100\)"),
        ("stylegan_generator", {}, (latents()[:, :100],), {}, r"latents of shape \(n, 512\), got \(4, 100\)"),
        ("stylegan_generator", {}, (latents(),), {"stage": 3}, r"stages 0 \(4x4\) to 2 \(16x16\), got 3"),
        (
            "stylegan_generator",
            {"num_classes": 3},
            (latents(),),
            {},
            "conditional on 3 classes: give labels",
        ),
        ("progan_generator", {}, (latents(), labels_of(3)), {}, "unconditional and takes no labels"),
        ("progan_generator", {"num_classes": 3}, (latents(), labels_of(3, 2)), {}, r"labels of shape \(4,\)"),
        ("stylegan_discriminator", {"num_classes": 3}, (images_of(16),), {}, "give labels"),
        ("progan_discriminator", {}, (images_of(8),), {}, r"stage 2 sees images \(16, 16, 3\), got \(8, 8, 3\)"),
        ("progan_discriminator", {}, (images_of(16, 6),), {}, "groups of 4 examples, got 6; use a batch of 8"),
        ("progan_discriminator", {}, (images_of(16, 0),), {}, "one image or more, got none"),
        (
            "stylegan_generator",
            {},
            (latents(),),
            {"truncation_psi": jnp.ones(4)},
            r"psi is one number, got \(4,\); jax\.vmap",
        ),
        ("progan_generator", {"num_classes": -1}, (latents(), labels_of(3)), {}, "num_classes=-1: .* 0 or more"),
        ("progan_discriminator", {"num_classes": -1}, (images_of(16),), {}, "num_classes=-1: .* 0 or more"),
        ("progan_generator", {"latent_features": 0}, (latents()[:, :0],), {}, "latent_features=0: .* 1 or more"),
        ("stylegan_generator", {"w_features": -1}, (latents(),), {}, "w_features=-1: .* 1 or more"),
        ("stylegan_discriminator", {"max_features": 0}, (images_of(16),), {}, "max_features=0: .* 1 or more"),
    ],
)
def test_bad_input_is_named(name, fields, inputs, options, said):
    model = jaxseg.create_model(name, **{"resolution": 16, **NARROW, **fields})
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), *inputs, **options, train=False))


@pytest.mark.parametrize("name", NAMES[::2])
def test_no_latents_are_no_images(name):
    assert run(name)(latents(0)).shape == (0, 16, 16, 3)


def test_the_papers_configurations_are_values():
    """Each changes what its row of Table 1 says, and nothing else."""
    paths = {}
    for letter, configuration in CONFIGURATIONS.items():
        model = configuration.generator(resolution=16, **NARROW)
        names = ("/".join(key.key for key in p) for p, _ in jax.tree_util.tree_leaves_with_path(blank_variables(model)))
        paths[letter] = {name for name in names if name.startswith("params")}
        critic = configuration.discriminator(resolution=16, **NARROW)
        assert (configuration.loss == "wgan-gp") == (not critic.blur) == (letter == "A")
    assert paths["A"] - paths["B"] == {f"params/conv_{size}_0/bias" for size in (8, 16)}  # before the filter: after it
    assert paths["C"] - paths["D"] == {"params/synthesis/dense/kernel"}
    assert paths["D"] - paths["C"] == {"params/synthesis/const"}
    assert {name.rsplit("/", 1)[1] for name in paths["E"] - paths["D"]} == {"noise_strength"}
    assert paths["D"] < paths["E"] == paths["F"]
    mixing = [CONFIGURATIONS[letter].generator(resolution=16).mixing for letter in "EF"]
    assert mixing == [0.0, 0.9]


@pytest.mark.parity
@pytest.mark.parametrize(("name", "resolution"), [*((name, 64) for name in NAMES), *((name, 1024) for name in NAMES)])
def test_beside_torch(name, resolution):
    """The transcription, whose numbers at 64x64 are genforce's, and with it the whole height of 1024x1024."""
    torch = pytest.importorskip("torch")
    from golden import generation

    # a generator of 1024x1024 at the published width: sixteen features make images with pixels of 79 deviations
    wide = {} if resolution == 64 else {"base_features": 4096}
    published = resolution == 1024 and name.endswith("generator")
    model = jaxseg.create_model(name, resolution=resolution, **({} if published else {**NARROW, **wide}))
    variables = jax.tree_util.tree_map_with_path(equalized, blank_variables(model))
    p = generation.tensors(to_genforce(model, variables))
    if name.endswith("discriminator"):
        images = images_of(resolution, 2 if resolution == 1024 else 4)
        x = torch.tensor(np.asarray(images)).permute(0, 3, 1, 2).requires_grad_()
        score = generation.discriminate(p, x, blur=name.startswith("style"))[:, 0]
        (gradient,) = torch.autograd.grad(score.sum(), x)

        @jax.jit
        def ours(images):
            score = lambda x: model.apply(variables, x, train=False).score  # noqa: E731
            return score(images), jax.grad(lambda x: score(x).sum())(images)

        found, slope = ours(images)
        np.testing.assert_allclose(found, score.detach().numpy(), atol=1e-3)
        np.testing.assert_allclose(slope, gradient.permute(0, 2, 3, 1).numpy(), atol=1e-5)
        return
    z = latents(1 if published else 2)
    generate = generation.stylegan_generate if name.startswith("style") else generation.progan_generate
    with torch.no_grad():
        theirs = generate(p, torch.tensor(np.asarray(z)), resolution).permute(0, 2, 3, 1).numpy()
    assert 0.3 < theirs.std() < 4
    ours = jax.jit(functools.partial(model.apply, train=False))(variables, z)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
