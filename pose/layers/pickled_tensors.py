"""The tensors of a checkpoint that pickles whole modules, without executing anything that the file asks for.

`torch.load` would import and call whatever such a file names; `weights_only=True` refuses it. Here a small machine
reads the pickle's instructions and only writes down what would be called with what (`Call`), never calls it. From what
was written down the parameters and buffers of a module are collected, as its state_dict would name them.

Formats: torch.save's zip archive (torch 1.6, 2020) and the pickle opcodes that torch's protocol 2 and later ones use.
"""

from __future__ import annotations

import math
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pose.errors import TrainingError
from pose.layers.inert_pickle import Call, Name, Pairs, execute, pairs

STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
"""What torch calls them."""
TENSOR, PARAMETER = ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter")
ORDERED = ("collections", "OrderedDict")
MOST_PICKLE = 256 * 2**20
"""Bytes of the pickle itself, without the tensors' data, above which it is not read."""
DEEPEST, MOST_MODULES = 100, 100_000
"""Modules within modules, and modules in all. A few bytes can describe more of them than memory holds."""


def read_state(path: Path, entries: tuple[str, ...] = ("ema", "model")) -> dict[str, Tensor]:
    """The state_dict of the first of these entries that a checkpoint has, in its own precision, on the CPU.

    An entry is a pickled module or itself a dictionary of tensors. Raises TrainingError for a file that is no torch
    archive, is damaged, or holds neither.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            reader = _Archive(path, archive)
            saved = _dictionary(execute(reader.pickle(), path))
            for entry in entries:
                if saved and saved.get(entry) is not None:
                    state: dict[str, Tensor] = {}
                    reader.collect(saved[entry], "", state, 0)
                    if state:
                        return state
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise TrainingError(
            f"{path} cannot be read as a torch archive ({error}). Files from before torch 1.6 are none: load those "
            "where you trust them and save the state_dict again."
        ) from error
    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError, zlib.error) as error:
        raise TrainingError(
            f"{path} is damaged or was not written by torch ({type(error).__name__}: {error}); fetch it again."
        ) from error
    raise TrainingError(
        f"{path} has no module and no state_dict under {' or '.join(map(repr, entries))}; is it another checkpoint?"
    )


class _Archive:
    """torch.save's zip file."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self.archive, self.modules = path, archive, 0
        names = archive.namelist()
        pickles = [name for name in names if name.endswith("data.pkl") and name.count("/") <= 1]
        if len(pickles) != 1:
            raise TrainingError(f"{path} holds {len(pickles)} files data.pkl, a torch archive has one.")
        self.main = pickles[0]
        self.root = self.main.removesuffix("data.pkl")
        order = f"{self.root}byteorder"
        if order in names and archive.read(order).decode(errors="replace") != sys.byteorder:
            raise TrainingError(f"{path} was written on a machine of the other byte order; save it again on this kind.")

    def pickle(self) -> bytes:
        """The instructions."""
        size = self.archive.getinfo(self.main).file_size
        if size > MOST_PICKLE:
            raise TrainingError(f"{self.path}: its data.pkl has {size} bytes, at most {MOST_PICKLE} are read.")
        return self.archive.read(self.main)

    def collect(self, value: Any, prefix: str, into: dict[str, Tensor], depth: int) -> None:
        """Puts a module's tensors `into` the state_dict, or those of a dictionary of tensors."""
        self.modules += 1
        if depth > DEEPEST or self.modules > MOST_MODULES:
            raise TrainingError(
                f"{self.path}: its modules at {prefix[:80]} are nested more than {DEEPEST} deep, or are more than "
                f"{MOST_MODULES}; no network here is, so the file was made to keep its reader busy or is damaged."
            )
        entries = _dictionary(value.state) if isinstance(value, Call) and value.state is not None else None
        if entries is None or "_modules" not in entries:
            for key, part in (_dictionary(value) or {}).items():
                if isinstance(part, Call) and part.named in (TENSOR, PARAMETER):
                    into[f"{prefix}{key}"] = self.tensor(part)
            return
        dropped = entries.get("_non_persistent_buffers_set") or ()
        dropped = dropped.arguments[0] if isinstance(dropped, Call) and dropped.arguments else dropped
        for kind in ("_parameters", "_buffers"):
            for key, part in (_dictionary(entries.get(kind)) or {}).items():
                if isinstance(part, Call) and not (kind == "_buffers" and key in dropped):
                    into[f"{prefix}{key}"] = self.tensor(part)
        for key, part in (_dictionary(entries["_modules"]) or {}).items():
            if part is not None:
                self.collect(part, f"{prefix}{key}.", into, depth + 1)

    def tensor(self, call: Call) -> Tensor:
        """The tensor that this call would make."""
        if call.named == PARAMETER and isinstance(call.arguments, tuple) and isinstance(call.arguments[0], Call):
            call = call.arguments[0]
        try:
            if call.named != TENSOR:
                raise ValueError(f"it is made by {call.named}")
            stored, offset, size, stride = call.arguments[:4]
            return self._view(stored.key, offset, size, stride)
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise TrainingError(
                f"{self.path}: a tensor in it cannot be read ({error}); the file is damaged."
            ) from error

    def _view(self, key: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        kind, storage, name = key[:3]
        if kind != "storage" or not isinstance(storage, Name) or storage.name not in STORAGES:
            raise ValueError("its data are not in a storage that torch has")
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or any(not isinstance(n, int) or n < 0 for n in numbers):
            raise ValueError(f"its size is {size}, its stride {stride}, its offset {offset}")
        dtype = STORAGES[storage.name]
        if not math.prod(size):
            return torch.empty(size, dtype=dtype)
        data = self.archive.read(f"{self.root}data/{name}")
        values = torch.frombuffer(bytearray(data), dtype=dtype)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= len(values):
            raise ValueError(f"it needs {last + 1} values of {name}, which has {len(values)}")
        return values.as_strided(size, stride, offset).clone()


def _dictionary(value: Any) -> dict[str, Any] | None:
    """The entries under strings of a dictionary, plain or ordered; None for anything else."""
    if isinstance(value, Call):
        made = value.arguments[0] if isinstance(value.arguments, tuple) and value.arguments else None
        first = pairs(made) if value.named == ORDERED else None
        items = (first or []) + value.items if value.named == ORDERED else None
    else:
        items = value.items if isinstance(value, Pairs) else None
    if items is None and isinstance(value, tuple) and value:
        # What __getstate__ gives where there are slots: (dictionary, slots).
        return _dictionary(value[0])
    return None if items is None else {key: part for key, part in items if isinstance(key, str)}
