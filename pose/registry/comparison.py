"""Figures side by side: only of one protocol, as anything else compares protocols and not models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pose.errors import RegistryError
from pose.protocol import NO_BOXES
from pose.registry.store import Store
from pose.registry.versions import Version, resolve


@dataclass(frozen=True)
class Comparison:
    """Figures of several versions by one protocol (two, where there are detected boxes as well)."""

    models: tuple[str, ...]
    protocol: str
    figures: dict[str, tuple[float | None, ...]]
    """By metric, in the models' order; None where a version does not have it."""


def compare(store: Store, references: Sequence[str]) -> Comparison:
    """The versions' figures. Raises RegistryError, saying what differs, where their protocols are not the same."""
    versions = [resolve(store, reference) for reference in references]
    for suffix in ("", "_detected"):
        _require_one_protocol(versions, suffix)
    names = {name: None for version in versions for name in version.metrics}
    first = versions[0].protocol_of("")
    assert first is not None
    return Comparison(
        models=tuple(version.uri.removeprefix("models:/") for version in versions),
        protocol=first.id,
        figures={name: tuple(_known(version.metrics.get(name)) for version in versions) for name in names},
    )


def _require_one_protocol(versions: Sequence[Version], suffix: str) -> None:
    protocols = [version.protocol_of(suffix) for version in versions]
    if suffix == "":
        for version, protocol in zip(versions, protocols, strict=True):
            if protocol is None:
                raise RegistryError(
                    f"{version.uri} was registered without a protocol, so nothing says what its figures compare "
                    f"with; evaluate and register it anew."
                )
    known = [(version, protocol) for version, protocol in zip(versions, protocols, strict=True) if protocol]
    for version, protocol in known[1:]:
        first, theirs = known[0]
        different = theirs.differences(protocol)
        if theirs.boxes == protocol.boxes == NO_BOXES:
            # Who finds people by itself thins them out by itself.
            different.pop("nms", None)
        if different:
            what = "; ".join(f"{name} is {_short(a)} and {_short(b)}" for name, (a, b) in different.items())
            raise RegistryError(
                f"{first.uri} (protocol {theirs.id}) and {version.uri} (protocol {protocol.id}) are not comparable: "
                f"{what}. Evaluate both alike first."
            )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
