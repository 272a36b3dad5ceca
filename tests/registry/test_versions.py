"""Registration: complete bundles, found by fingerprint, loaded without pickle, traced to their origin."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pose.errors import RegistryError
from pose.registry import Registry

GOOD = np.full(20, 8)


def test_a_registered_version_is_found_by_its_fingerprint(factory: Callable) -> None:
    models = factory()
    version = models.register(GOOD)
    found = models.registry.finished(models.name, version.fingerprint)
    assert found == version
    assert found.metrics["pck_image_12"] == pytest.approx(0.8)
    assert models.registry.finished(models.name, "another") is None


def test_a_version_whose_file_is_gone_is_not_finished(factory: Callable) -> None:
    models = factory()
    version = models.register(GOOD)
    (models.registry.bundle(version.uri) / "model.safetensors").unlink()
    assert models.registry.finished(models.name, version.fingerprint) is None


def test_registering_the_same_bundle_twice_makes_one_version(factory: Callable) -> None:
    models = factory()
    version = models.register(GOOD)
    bundle = models.registry.bundle(version.uri)
    again = models.registry.register(bundle, models.name, version.run_id, {"fingerprint": "x"}, {})
    assert again == version
    assert len(models.registry.show(models.name)) == 1


def test_an_incomplete_bundle_is_refused(factory: Callable, tmp_path: Path) -> None:
    models = factory()
    version = models.register(GOOD)
    (tmp_path / "bare").mkdir()
    described = '{"system": "t", "skeleton": "s", "joints": ["a"], "input_size": [8, 8]}'
    (tmp_path / "bare" / "model.json").write_text(described)
    with pytest.raises(RegistryError, match=r"lacks model\.onnx, model\.pt2"):
        models.registry.register(tmp_path / "bare", models.name, version.run_id, {}, {})


def test_a_changed_byte_is_found_by_its_hash(factory: Callable) -> None:
    models = factory()
    version = models.register(GOOD)
    path = models.registry.bundle(version.uri) / "model.pt2"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(RegistryError, match=r"model\.pt2 is not the file that was registered"):
        models.registry.bundle(version.uri)


def test_mlflow_loads_a_bundle_by_alias_without_pickle(factory: Callable) -> None:
    import mlflow

    models = factory()
    version = models.register(GOOD)
    models.registry.store.client.set_registered_model_alias(models.name, "champion", str(version.version))
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    mlflow.set_tracking_uri(models.registry.store.uri)
    mlflow.set_registry_uri(models.registry.store.uri)
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)
    expected = images.astype(np.float64).mean(axis=(2, 3))

    loaded = mlflow.pyfunc.load_model(f"models:/{models.name}@champion")
    np.testing.assert_allclose(loaded.predict({"images": images})["scores"], expected, rtol=1e-5)
    example = loaded.input_example
    assert np.asarray(example["images"]).shape == (1, 3, 8, 8)
    assert loaded.metadata.signature.inputs.input_names() == ["images"]
    assert set(loaded.metadata.signature.outputs.input_names()) == {"keypoints", "scores", "presence"}
    assert mlflow.onnx.load_model(version.uri).graph.name == "tiny"
    assert not list(models.registry.bundle(version.uri).rglob("*.pkl"))


def test_trace_names_lineage_run_parameters_and_files(factory: Callable) -> None:
    models = factory()
    version = models.register(GOOD)
    traced = models.registry.trace(f"{models.name}/{version.version}")
    assert traced["lineage"]["git_commit"] == "c0ffee"
    assert traced["lineage"]["data_hash"] == "da7a"
    assert traced["run"]["params"] == {"lr": "0.1"}
    assert traced["run"]["status"] == "FINISHED"
    assert traced["bundle"]["files"]["model.onnx"]["bytes"] > 0


def test_unknown_models_are_named_with_what_there_is(factory: Callable, registry: Registry) -> None:
    models = factory()
    models.register(GOOD)
    with pytest.raises(RegistryError, match=f"no model pose-nobody .*{models.name}"):
        registry.show("pose-nobody")
    with pytest.raises(RegistryError, match="alias champion"):
        registry.resolve(f"models:/{models.name}@champion")
    with pytest.raises(RegistryError, match="has no version 99"):
        registry.resolve(f"{models.name}/99")
    assert models.name in [summary.name for summary in registry.list()]
