"""params.yaml, a profile and `--set` into one frozen, checked Params; errors that name the key and its origin.

YAML is read strictly: a key given twice is refused and 1e-3 is a number. The blocks under `data` come from
params.yaml alone, because DVC reads them there.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from pose.config import ROOT, DatasetParams, Params, SystemParams
from pose.errors import ConfigError

KeyPath = tuple[str | int, ...]


class _StrictLoader(yaml.SafeLoader):
    """YAML as its authors mean it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []  # a key may be a list, which the loader refuses in its own words
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.append(key)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(text: str, origin: str) -> Any:
    """The value of a YAML text. Raises ConfigError with the origin and line of what is wrong."""
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is not valid: {' '.join(str(error).split())}") from None


def profiles(root: Path = ROOT) -> dict[str, Path]:
    """The profiles of infra/profiles/, by name."""
    return {path.stem: path for path in sorted((root / "infra" / "profiles").glob("*.yaml"))}


def load(profile: str | None = None, overrides: Sequence[str] = (), root: Path = ROOT) -> Params:
    """params.yaml, overlaid by a profile (a name, or a path to a YAML file) and by `a.b=c` overrides.

    Every system block becomes an instance of that system's own Params. Raises ConfigError.
    """
    origins: dict[KeyPath, str] = {}
    tree = _read_mapping(root / "params.yaml", "params.yaml")
    if profile is not None:
        path = _profile_path(profile, root)
        _overlay(tree, _without_data(_read_mapping(path, path.name), path.name), path.name, origins)
    for text in overrides:
        _set(tree, text, origins)
    return _validate(tree, origins)


def retuned(name: str, params: SystemParams, overrides: Sequence[str]) -> SystemParams:
    """A trained model's params with what `--set systems.NAME...` says of its use; other overrides are not looked at.

    Raises ConfigError for those of another system, and of what its weights were trained with.
    """
    tree: dict[str, Any] = {"systems": {name: params.model_dump(mode="json")}}
    origins: dict[KeyPath, str] = {("systems", name): "the model"}
    for text in overrides:
        block, *path = text.partition("=")[0].split(".")
        if block != "systems":
            continue
        if path[:1] != [name]:
            raise ConfigError(f"--set {text} would change nothing: the model is of {name}")
        if len(path) < 2 or path[1] not in params.test_time:
            can = f"; of {name} {', '.join(sorted(params.test_time))} can be set" if params.test_time else ""
            raise ConfigError(
                f"--set {text} would change nothing: a model keeps the numbers that it was trained or imported "
                f"with{can}; leave it away, or train or import again with it"
            )
        _set(tree, text, origins)
    return _checked(type(params), tree["systems"][name], ("systems", name), origins) if len(origins) > 1 else params


def load_dataset(name: str, root: Path = ROOT) -> DatasetParams:
    """One dataset's block of params.yaml, exactly as DVC sees it. Raises ConfigError."""
    blocks = _read_mapping(root / "params.yaml", "params.yaml").get("data") or {}
    if name not in blocks:
        raise ConfigError(f"unknown dataset {name!r}; params.yaml has {', '.join(blocks)}{_nearest(name, blocks)}")
    return _checked(DatasetParams, blocks[name], ("data", name), {})


def _read_mapping(path: Path, origin: str) -> dict[str, Any]:
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    tree = read_yaml(text, origin)
    if not isinstance(tree, dict):
        raise ConfigError(f"{origin} holds {tree!r}, expected a mapping of keys to values")
    return tree


def _profile_path(profile: str, root: Path) -> Path:
    known = profiles(root)
    if profile in known:
        return known[profile]
    path = Path(profile)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    raise ConfigError(f"unknown profile {profile!r}; known are {', '.join(known)}{_nearest(profile, known)}")


def _without_data(tree: dict[str, Any], origin: str) -> dict[str, Any]:
    if "data" in tree:
        raise ConfigError(f"{origin} changes `data`, which only params.yaml may: DVC keys the datasets by it")
    return tree


def _overlay(tree: dict[str, Any], layer: dict[str, Any], origin: str, origins: dict, at: KeyPath = ()) -> None:
    """Lays mappings over mappings in place; a list or a scalar replaces what was there."""
    for key, value in layer.items():
        path = (*at, key)
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            # Anchors make systems share one object: a change to one must not reach the others.
            tree[key] = dict(tree[key])
            _overlay(tree[key], value, origin, origins, path)
        else:
            tree[key] = value
            origins[path] = origin


def _set(tree: dict[str, Any], text: str, origins: dict) -> None:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {text!r} is not of the form a.b=value, for example --set training.precision=bf16")
    path = key.split(".")
    _without_data({path[0]: None}, f"--set {text}")
    node: Any = tree
    for depth, step in enumerate(path[:-1]):
        dotted = ".".join(path[: depth + 1])
        if isinstance(node, dict) and step not in node:
            raise ConfigError(f"--set {text}: there is no key {dotted!r}{_nearest(step, node)}")
        place = _list_index(node, step, dotted, text) if isinstance(node, list) else step
        # A copy of what may be shared through an anchor.
        node[place] = copy(node[place])
        node = node[place]
        if not isinstance(node, (dict, list)):
            raise ConfigError(
                f"--set {text}: {dotted} is {node!r}, a value that has no keys; expected --set {dotted}=value"
            )
    place = _list_index(node, path[-1], key, text) if isinstance(node, list) else path[-1]
    node[place] = read_yaml(value, f"--set {text}")
    origins[tuple(int(step) if step.isdecimal() else step for step in path)] = f"--set {text}"


def _list_index(node: list, step: str, dotted: str, text: str) -> int:
    if not step.isdecimal() or int(step) >= len(node):
        raise ConfigError(f"--set {text}: there is no {dotted!r}, expected an index into a list of {len(node)}")
    return int(step)


def _validate(tree: dict[str, Any], origins: dict[KeyPath, str]) -> Params:
    from pose.systems import SYSTEMS

    blocks = tree.get("systems")
    if isinstance(blocks, dict):
        systems = {}
        for name, block in blocks.items():
            if name not in SYSTEMS:
                raise ConfigError(_unknown_key(("systems", name), SYSTEMS, origins))
            systems[name] = _checked(SYSTEMS[name].Params, block, ("systems", name), origins)
        tree = {**tree, "systems": systems}
    params = _checked(Params, tree, (), origins)
    _check_names(params, origins)
    return params


def _check_names(params: Params, origins: dict[KeyPath, str]) -> None:
    """What a block says of others and of files: dataset, architectures, what their phases train, detections."""
    import torch

    from pose.skeleton import LSP14
    from pose.systems import DETECTOR, create

    _known("dataset", params.dataset, params.data, origins)
    for position, name in enumerate(params.architectures):
        _known("architectures", name, params.systems, origins, position)
        if name in params.architectures[:position]:
            raise ConfigError(f"architectures names {name!r} twice{_origin(('architectures',), origins)}")
        awaited = params.systems[name].awaits
        if awaited and DETECTOR not in params.architectures:
            where = _origin(("systems", name, *awaited.split(".")), origins)
            raise ConfigError(
                f"systems.{name}.{awaited} asks for the boxes of the run's own detector{where}, but `architectures` "
                f"has no {DETECTOR}; add it there, or name a file of detections on the training split"
            )
    for name, block in params.systems.items():  # `pose train` takes any of them
        try:
            block.initial_file  # noqa: B018
        except ConfigError as error:
            where = _origin(("systems", name, "initial"), origins)
            raise ConfigError(f"systems.{name}.initial is {block.initial!r}{where}: {error}") from None
    boxes = params.detections_path
    if boxes is not None and not boxes.is_file():
        given, where = params.evaluation.detections, _origin(("evaluation", "detections"), origins)
        raise ConfigError(f"evaluation.detections is {given!r}{where}: there is no such file, {boxes}")
    with torch.device("meta"):
        for name in params.architectures:
            create(name, params.systems[name], LSP14)


def _known(key: str, value: str, valid: Any, origins: dict, *at: int) -> None:
    if value not in valid:
        where = _origin((key, *at), origins)
        raise ConfigError(f"{key} is {value!r}{where}, expected one of {', '.join(valid)}{_nearest(value, valid)}")


def _checked(model: type[BaseModel], value: Any, at: KeyPath, origins: dict[KeyPath, str]) -> Any:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        lines = [_explain(model, detail, at, origins) for detail in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def _explain(model: type[BaseModel], detail: Any, at: KeyPath, origins: dict[KeyPath, str]) -> str:
    path = (*at, *detail["loc"])
    if detail["type"] == "extra_forbidden":
        return _unknown_key(path, _keys_of(model, detail["loc"][:-1]), origins)
    if detail["type"] == "missing":
        return f"{_dotted(path)} is missing: expected a value, see pose/config.py"
    found = detail["input"]
    shown = "a block of keys" if isinstance(found, dict) else repr(found)
    # Pydantic's own words for an ordinary check begin "Input should be ..."; a validator of ours says it all itself.
    expected = detail["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    return f"{_dotted(path)} is {shown}{_origin(path, origins)}: {expected}"


def _unknown_key(path: KeyPath, valid: Any, origins: dict[KeyPath, str]) -> str:
    return (
        f"{_dotted(path)} is not a known key{_origin(path, origins)}; "
        f"expected one of {', '.join(map(str, valid))}{_nearest(str(path[-1]), valid)}"
    )


def _keys_of(model: Any, path: Sequence[str | int]) -> list[str]:
    """The field names of the block at a path below a model."""
    for step in path:
        model = _inner(model, step)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _inner(annotation: Any, step: str | int) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _plain(annotation.model_fields[str(step)].annotation)
    arguments = get_args(annotation)
    return _plain(arguments[-1]) if arguments else annotation


def _plain(annotation: Any) -> Any:
    """An optional type without its None."""
    if get_origin(annotation) in (Union, UnionType):
        return next(argument for argument in get_args(annotation) if argument is not type(None))
    return annotation


def _nearest(key: str, valid: Any) -> str:
    matches = difflib.get_close_matches(key, [str(name) for name in valid], n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def _origin(path: KeyPath, origins: dict[KeyPath, str]) -> str:
    """Where the value at a path came from: its own layer or that of the nearest block around it."""
    for length in range(len(path), 0, -1):
        if path[:length] in origins:
            return f" (from {origins[path[:length]]})"
    return " (from params.yaml)"


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))
