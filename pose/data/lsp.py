"""Leeds Sports Pose: joints.mat and a folder of photographs, read as COCO keypoints.

Extended (Johnson & Everingham, CVPR 2011): float64 [14, 3, N]; row 3 is 1 where a joint is visible, 0 where it was not
annotated, and then the position is a meaningless constant. Its positions are crowd-sourced clicks with fractions and
are taken as continuous pixels.
The first LSP (BMVC 2010): [3, 14, N]; row 3 is 1 where a joint is OCCLUDED, with a true position. Its positions count
pixels from 1 as MATLAB does, so half a pixel comes off to make pixel j cover [j, j + 1).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.io import loadmat

from pose.data.coco import category
from pose.errors import DataError
from pose.skeleton import LSP14

JOINTS = LSP14.size


def read_lspet(root: Path) -> dict:
    """LSP-extended as a COCO keypoints dict: visible joints v = 2, the others v = 0 at (0, 0). NaN is passed on.

    Raises DataError if joints.mat or the images are not laid out as published.
    """
    top, root = root, _dataset_root(root)
    joints = _load_joints(root / "joints.mat", axes=(JOINTS, 3, None)).transpose(2, 0, 1)
    flags = _flags(root / "joints.mat", joints[:, :, 2])
    if flags.mean() <= 0.5:
        raise DataError(
            f"{root / 'joints.mat'} marks {flags.mean():.1%} of the joints as visible, expected most of them (88 % in "
            f"LSP-extended, whose third row is 1 where a joint is visible). Is this another dataset's file?"
        )
    keypoints = np.concatenate([joints[:, :, :2] * flags[..., None], 2.0 * flags[..., None]], axis=2)
    keypoints[~flags.astype(bool)] = 0  # also where the meaningless position is not a number
    return _to_coco(root, top, keypoints, digits=5, description="Leeds Sports Pose Extended")


def read_lsp(root: Path) -> dict:
    """LSP as a COCO keypoints dict: visible joints v = 2, occluded ones v = 1. NaN is passed on.

    Raises DataError if joints.mat or the images are not laid out as published.
    """
    top, root = root, _dataset_root(root)
    joints = _load_joints(root / "joints.mat", axes=(3, JOINTS, None)).transpose(2, 1, 0)
    occluded = _flags(root / "joints.mat", joints[:, :, 2])
    if occluded.mean() >= 0.5:
        raise DataError(
            f"{root / 'joints.mat'} marks {occluded.mean():.1%} of the joints as occluded, expected fewer than half "
            f"(LSP's third row is 1 where a joint is occluded). Is its flag not inverted, or is this another dataset?"
        )
    keypoints = np.concatenate([joints[:, :, :2] - 0.5, 2.0 - occluded[..., None]], axis=2)
    return _to_coco(root, top, keypoints, digits=4, description="Leeds Sports Pose")


def jpeg_size(path: Path) -> tuple[int, int]:
    """(width, height) from a JPEG's frame header, a few hundred bytes read; (0, 0) where there is none to be found.

    The audit decodes every image and reports such a file by name.
    """
    with path.open("rb") as file:
        if file.read(2) != b"\xff\xd8":
            return 0, 0
        while True:
            marker = file.read(2)
            if len(marker) < 2 or marker[0] != 0xFF:
                return 0, 0
            if marker[1] == 0xFF:  # fill byte before a marker
                file.seek(-1, 1)
                continue
            length = int.from_bytes(file.read(2), "big")
            if marker[1] in range(0xC0, 0xD0) and marker[1] not in (0xC4, 0xC8, 0xCC):  # a start of frame
                frame = file.read(5)
                if len(frame) < 5:
                    return 0, 0
                return int.from_bytes(frame[3:5], "big"), int.from_bytes(frame[1:3], "big")
            if length < 2 or marker[1] == 0xDA:
                return 0, 0
            file.seek(length - 2, 1)


def _dataset_root(root: Path) -> Path:
    """The folder that holds joints.mat: root, or the one folder an archive wraps around it."""
    candidates = sorted(path.parent for pattern in ("joints.mat", "*/joints.mat") for path in root.glob(pattern))
    if not candidates:
        raise DataError(f"{root} has no joints.mat, neither at its top nor one folder below. Is this an LSP archive?")
    return candidates[0]


def _load_joints(path: Path, axes: tuple[int | None, ...]) -> np.ndarray:
    """float64 array `joints` of a .mat file, checked against the axes (None: any length above zero)."""
    expected = "x".join("N" if axis is None else str(axis) for axis in axes)
    try:
        content = loadmat(path, variable_names=["joints"])
    except Exception as error:  # scipy raises whatever the damage leads to
        raise DataError(f"{path} is no readable MATLAB file ({error}); expected joints of shape {expected}") from error
    if "joints" not in content:
        raise DataError(f"{path} holds no variable 'joints', expected an array of shape {expected}")
    joints = content["joints"]
    found = "x".join(map(str, joints.shape))
    fits = joints.ndim == len(axes) and all(a in (None, n) for a, n in zip(axes, joints.shape, strict=True))
    if not fits or joints.size == 0 or not np.issubdtype(joints.dtype, np.number):
        raise DataError(
            f"{path} holds joints of shape {found} and type {joints.dtype}, expected numbers of shape {expected}. "
            f"LSP-extended is {JOINTS}x3xN, the first LSP is 3x{JOINTS}xN: does `kind` in params.yaml fit the archive?"
        )
    return joints.astype(np.float64)


def _flags(path: Path, flags: np.ndarray) -> np.ndarray:
    """[N, 14] flags, each 0 or 1. Raises DataError naming the first that is something else."""
    wrong = np.argwhere((flags != 0) & (flags != 1))
    if len(wrong):
        image, joint = wrong[0]
        raise DataError(
            f"{path}: the flag of {LSP14.joints[joint]} in image {image + 1} is {flags[image, joint]}, expected 0 or 1 "
            f"({len(wrong)} flags are neither)"
        )
    return flags


def _to_coco(root: Path, top: Path, keypoints: np.ndarray, digits: int, description: str) -> dict:
    """keypoints [N, 14, 3] of x, y, v and images/im<number>.jpg, numbered from 1 in the order of the last axis.

    File names are relative to `top`, which may lie above the root of the dataset.
    """
    inside = root.relative_to(top)
    names = [f"images/im{number:0{digits}d}.jpg" for number in range(1, len(keypoints) + 1)]
    _require_images(root, names)
    images, annotations = [], []
    for number, (name, person) in enumerate(zip(names, keypoints, strict=True), start=1):
        width, height = jpeg_size(root / name)
        images.append({"id": number, "file_name": (inside / name).as_posix(), "width": width, "height": height})
        annotations.append(annotation(number, number, person))
    return {
        "info": {"description": description},
        "categories": [category(LSP14)],
        "images": images,
        "annotations": annotations,
    }


def annotation(annotation_id: int, image_id: int, keypoints: np.ndarray) -> dict:
    """COCO annotation of keypoints [K, 3]; the box spans the labelled joints, as these datasets have no other."""
    located = keypoints[keypoints[:, 2] > 0, :2]
    located = located[np.isfinite(located).all(axis=1)]
    low, high = (located.min(axis=0), located.max(axis=0)) if len(located) else (np.zeros(2), np.zeros(2))
    width, height = (high - low).tolist()
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": 1,
        "keypoints": [value for x, y, v in keypoints.tolist() for value in (x, y, int(v))],
        "num_keypoints": int((keypoints[:, 2] > 0).sum()),
        "bbox": [*low.tolist(), width, height],
        "area": width * height,
        "iscrowd": 0,
    }


def _require_images(root: Path, names: list[str]) -> None:
    present = {f"images/{path.name}" for path in (root / "images").glob("*.jpg")}
    missing = [name for name in names if name not in present]
    surplus = sorted(present.difference(names))
    if missing or surplus:
        faults = [f"{len(missing)} missing, the first is {missing[0]}"] if missing else []
        faults += [f"{len(surplus)} that joints.mat has no column for, the first is {surplus[0]}"] if surplus else []
        raise DataError(
            f"{root / 'images'} does not fit joints.mat, which has {len(names)} columns and so expects {names[0]} to "
            f"{names[-1]}: {' and '.join(faults)}. Unpack the archive again or mend the dataset."
        )
