# SPDX-License-Identifier: Apache-2.0
"""Weights from the hub, from a URL and from the catalog, all of a server on this machine."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
from support.hub_server import HubServer
from support.weight_files import (
    FILES,
    MODEL,
    assert_same,
    random_variables,
    torch_values,
    write_torch_names,
)

from mambaout_jax.imagenet_classes import CLASS_NAMES
from mambaout_jax.weights import catalog
from mambaout_jax.weights.convert import to_torch
from mambaout_jax.weights.load import describe_source, load_pretrained, read_variables

# The hub's client reads its environment when it is imported: a process of its own.
HUB = """
import json, sys, time
from mambaout_jax.weights.load import describe_source, load_pretrained, save_variables
time.sleep = lambda seconds: None  # the client waits between its tries
answers = []
for i, (source, name) in enumerate(json.loads(sys.argv[2])):
    try:
        _, variables = load_pretrained(source, name, depths=(1, 1), dims=(8, 16))
        save_variables(variables, f"{sys.argv[1]}/{i}.safetensors")
        answers.append([None, str(describe_source(source, name))])
    except Exception as error:
        answers.append([type(error).__name__, str(error)])
print(json.dumps(answers))
"""


def run_on_hub(home, url, *sources):
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", HUB, str(home), json.dumps(sources)],
        env={**os.environ, "HF_HOME": str(home / "hub"), "HF_ENDPOINT": url},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    answers = json.loads(result.stdout)
    loaded = [
        read_variables(home / f"{i}.safetensors")[0] if error is None else None
        for i, (error, _) in enumerate(answers)
    ]
    return answers, loaded


def hub_config(**changes):
    config = {
        "architecture": "mambaout_tiny",
        "num_classes": 3,
        "pretrained_cfg": {
            "input_size": [3, 192, 192],
            "crop_pct": 0.875,
            "crop_mode": "squash",
            "interpolation": "bilinear",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
        },
        "label_names": ["cat", "dog", "eel"],
        **changes,
    }
    return json.dumps(config).encode()


@pytest.mark.slow
def test_hub_repositories_and_the_catalog_load_over_the_hub(tmp_path):
    variables = random_variables()
    body = write_torch_names(tmp_path / "weights.safetensors", variables).read_bytes()
    sources = [
        ("mambaout_tiny.in1k", None),
        ("hf_hub:me/mine", None),
        ("hf-hub:me/mine@main", "mambaout_tiny"),
        ("hf_hub:me/other", None),
        ("hf_hub:me/changed", None),
        ("hf_hub:me/absent", None),
    ]
    with HubServer() as server:
        server.files = {
            "timm/mambaout_tiny.in1k/model.safetensors": body,
            "me/mine/model.safetensors": body,
            "me/mine/config.json": hub_config(),
            "me/other/config.json": hub_config(architecture="resnet50"),
            "me/changed/config.json": hub_config(model_args={"act_layer": "relu"}),
        }
        answers, loaded = run_on_hub(tmp_path, server.url, *sources)
        url = server.url
    for i in range(3):
        assert answers[i][0] is None, answers[i][1]
        assert_same(loaded[i], variables)
    assert "image_size=224, crop_fraction=1.0" in answers[0][1]
    for i in (1, 2):
        assert answers[i][1] == (
            "Preprocessing(image_size=192, crop_fraction=0.875, crop_mode='squash', "
            "interpolation='bilinear', mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), "
            "class_names=('cat', 'dog', 'eel'))"
        )
    assert answers[3][0] == "ValueError"
    assert "me/other has architecture='resnet50'" in answers[3][1]
    assert answers[4][0] == "ValueError"
    assert "model_args={'act_layer': 'relu'}" in answers[4][1]
    assert answers[5][0] == "FileNotFoundError"
    assert f"{url} has no repository me/absent" in answers[5][1]

    # The server is gone; what was loaded before still loads.
    answers, loaded = run_on_hub(tmp_path, url, *sources[:2], ("mambaout_femto.in1k", None))
    for i in range(2):
        assert answers[i][0] is None, answers[i][1]
        assert_same(loaded[i], variables)
    assert answers[2][0] == "FileNotFoundError"
    assert "model.safetensors of timm/mambaout_femto.in1k is not in the cache" in answers[2][1]


def test_url_and_official_weights_load_over_the_web(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with HubServer() as server:
        server.files["release/mambaout_tiny.pth"] = (FILES / "mambaout_tiny.pth").read_bytes()
        url = f"{server.url}/release/mambaout_tiny.pth"
        official = dataclasses.replace(catalog.CATALOG["mambaout_tiny.official"], source=url)
        monkeypatch.setitem(catalog.CATALOG, "mambaout_tiny.official", official)
        for source in (f"{url}?download=true", url, "mambaout_tiny.official"):
            _, loaded = load_pretrained(source, **MODEL)
            state = to_torch("mambaout_tiny", loaded, naming="official", num_classes=3, **MODEL)
            assert_same(state, torch_values())
        assert len(server.requests) == 2
        wrong = dataclasses.replace(official, sha256="0" * 64)
        monkeypatch.setitem(catalog.CATALOG, "mambaout_tiny.official", wrong)
        with pytest.raises(ValueError, match="published is 000"):
            load_pretrained("mambaout_tiny.official", **MODEL)
        with pytest.raises(ValueError, match="does not say which model"):
            load_pretrained(f"{server.url}/release/best.pth")
        assert len(server.requests) == 2
    assert describe_source(url).class_names == CLASS_NAMES
