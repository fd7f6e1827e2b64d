"""By what a run is recognised: its kind, the package's version, its settings and its inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from bridgex_jax.store.files import json_bytes, plain
from bridgex_jax.store.manifest import SCHEMA, collect_versions


def make_identity(
    kind: str, settings: Mapping[str, Any], inputs: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that can change a run's result, as plain values."""
    return {
        "kind": kind,
        "schema": SCHEMA,
        "bridgex_jax": collect_versions().get("bridgex_jax", "unknown"),
        "settings": plain(settings),
        "inputs": plain(inputs),
    }


def identity_hash(identity: Mapping[str, Any]) -> str:
    """Hexadecimal sha256 of an identity, as manifests keep it."""
    return hashlib.sha256(json_bytes(identity)).hexdigest()


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What two identities (or a manifest and an identity) differ in, in a few words."""
    if there.get("kind") != here["kind"]:
        return f"of kind {there.get('kind')}, not {here['kind']}"
    found = []
    for group in ("settings", "inputs"):
        old, new = _flatten(there.get(group, {})), _flatten(here[group])
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                found.append(f"{key}: {_short(old.get(key))} there, {_short(new.get(key))} here")
    if not found:
        return "made by another version of bridgex_jax"
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:21] + "…"
