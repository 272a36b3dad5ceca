"""A bundle: one directory that holds a model, what it is, how good it is, and the hash of every file in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pose.config import CropParams
from pose.digests import file_sha256, json_sha256
from pose.errors import ConfigError, ExportError, RegistryError
from pose.skeleton import skeleton_named

MANIFEST = "manifest.json"
REQUIRED = ("model.onnx", "model.pt2", "model.safetensors", "model.json", "card.md", "evaluation")


def require_model(folder: Path) -> None:
    """Raises ConfigError for a folder that is neither a bundle nor a training folder."""
    if not any((folder / name).is_file() for name in ("model.json", "spec.json")):
        raise ConfigError(
            f"{folder} holds no model: expected a bundle (with model.json and model.onnx) or a training folder "
            "(with spec.json and model.safetensors). `pose registry list` names what models:/ can load."
        )


def describe(folder: Path) -> dict[str, Any]:
    """model.json of a bundle. Raises ExportError where it does not describe a model."""
    path = folder / "model.json"
    try:
        facts = json.loads(path.read_text())
        return facts | {
            "skeleton": skeleton_named(facts["skeleton"]),
            "crop": CropParams.model_validate(facts["crop"]),
            "input_size": tuple(int(side) for side in facts["input_size"]),
            "system": str(facts["system"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(
            f"{path} does not describe a model ({type(error).__name__}: {error}); export it again"
        ) from None


def seal(bundle: Path) -> str:
    """Writes manifest.json over all files and returns the bundle's SHA-256. Raises RegistryError for a missing part."""
    missing = [name for name in REQUIRED if not (bundle / name).exists()]
    if missing:
        raise RegistryError(
            f"the bundle {bundle} lacks {', '.join(missing)}; a model is registered only when it is complete. "
            "Export it again."
        )
    files = {
        path.relative_to(bundle).as_posix(): {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        for path in sorted(bundle.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    (bundle / MANIFEST).write_text(json.dumps(files, indent=1, sort_keys=True) + "\n")
    return json_sha256(files)


def verify(bundle: Path, sha256: str) -> None:
    """Raises RegistryError unless every file is there, unchanged, and the whole is the one registered as `sha256`."""
    files = read_manifest(bundle)
    if json_sha256(files) != sha256:
        raise RegistryError(
            f"{bundle / MANIFEST} has SHA-256 {json_sha256(files)[:12]}, expected {sha256[:12]}: the bundle was "
            "replaced after it was registered. Register it again, or restore its files."
        )
    for name, expected in files.items():
        path = bundle / name
        if not path.is_file():
            raise RegistryError(f"the bundle {bundle} has lost {name}. Restore the file or register the model again.")
        if path.stat().st_size != expected["bytes"] or file_sha256(path) != expected["sha256"]:
            raise RegistryError(
                f"{path} is not the file that was registered ({expected['bytes']} bytes, SHA-256 "
                f"{expected['sha256'][:12]}). Restore the file or register the model again."
            )


def read_manifest(bundle: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of each file of a sealed bundle."""
    path = bundle / MANIFEST
    if not path.is_file():
        raise RegistryError(f"{bundle} has no {MANIFEST}: it is not a sealed bundle. Register the model again.")
    return json.loads(path.read_text())


def read_description(bundle: Path) -> dict[str, Any]:
    """model.json: system, params, skeleton, joints, input_size, crop, versions."""
    path = bundle / "model.json"
    if not path.is_file():
        raise RegistryError(
            f"{bundle} has no model.json: it is not a model bundle. Give a bundle or models:/NAME@ALIAS."
        )
    return json.loads(path.read_text())
