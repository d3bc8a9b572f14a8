"""Strangers' model.json and config.json: each describes a model, or a ValueError says what is wrong with it."""

import json

import numpy as np
import pytest
from data.test_fuzz_annotations import FUZZ, JUNK, places, with_junk
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from weights.test_fuzz import CHANGES, changed

from jaxseg.weights import load_model
from jaxseg.weights.folder import description

OURS = {"name": "unet_small", "num_classes": 3, "features": [4, 6, 8], "dropout": 0.0, "dtype": "float32"}
DILATED = {"name": "fcn_resnet50", "num_classes": 3, "backbone": {"name": "resnet50", "multi_grid": [1, 2]}}
SMP = {"_model_class": "PSPNet", "encoder_name": "resnet34", "classes": 3, "encoder_depth": 3, "psp_dropout": 0.1}
SMP |= {"decoder_channels": [8, 8, 8, 8, 8], "decoder_atrous_rates": [2, 4], "upsampling": 8, "activation": None}


def described(folder):
    try:
        return description(folder)
    except ValueError:
        return {"num_classes": 1}


@pytest.mark.parametrize(
    ("name", "tree"), [("model.json", {"model": OURS}), ("model.json", {"model": DILATED}), ("config.json", SMP)]
)
def test_any_value_of_a_description_may_be_any_other(tmp_path, name, tree):
    path, seed = tmp_path / name, json.dumps(tree).encode()

    @FUZZ
    @given(st.sampled_from(list(places(tree))), JUNK)
    def replaced(place, junk):
        path.write_text(json.dumps(with_junk(json.loads(seed), place, junk)))
        count = described(tmp_path).get("num_classes")
        assert not isinstance(count, int | float) or abs(count) <= 2**16

    @FUZZ
    @given(CHANGES)
    def damaged(changes):
        path.write_bytes(changed(seed, changes))
        described(tmp_path)

    replaced()
    damaged()


@pytest.mark.parametrize(
    ("name", "tree", "message"),
    [
        ("model.json", [], "no description of a model"),
        ("model.json", {}, "has no field model with a name"),
        ("model.json", {"model": {**OURS, "name": []}}, "has no field model with a name"),
        ("model.json", {"model": {**OURS, "num_classes": 10**9}}, "num_classes is 1000000000, which no model has"),
        ("model.json", {"model": {**OURS, "num_classes": "3"}}, "describes no model that can be made"),
        ("model.json", {"model": {**OURS, "num_classes": -3}}, "at least 1 class, got num_classes=-3"),
        ("model.json", {"model": {**OURS, "norm": "x"}}, 'no norm "x"; there is batch, frozen, group'),
        ("model.json", {"model": {"name": "stylegan_generator", "resolution": 2**40}}, "resolution is 1099511627776"),
        ("model.json", {"model": {**DILATED, "backbone": {"name": []}}}, r'no backbone "\[\]"'),
        ("model.json", {"model": {**DILATED, "backbone": {"depths": [9**4] * 4}}}, "depths are .6561, "),
        ("model.json", {"model": {**OURS, "norm": {"name": "batch"}}}, "norm is {'name': 'batch'}, which no model has"),
        ("config.json", "x", "no description of a model"),
        ("config.json", {**SMP, "_model_class": []}, "names no class and encoder"),
        ("config.json", {**SMP, "encoder_depth": 60_000}, "encoder_depth=60000"),
        (
            "config.json",
            {**SMP, "_model_class": "Unet", "encoder_depth": 5, "decoder_channels": 7},
            "a list of numbers",
        ),
    ],
)
def test_what_no_model_has_is_named(tmp_path, name, tree, message):
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / name).write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)


def test_deep_json_is_no_description(tmp_path):
    (tmp_path / "model.json").write_text("[" * 10**5)
    with pytest.raises(ValueError, match=r"model\.json: not a JSON file"):
        load_model(tmp_path)
