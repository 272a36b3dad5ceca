"""Contact sheet of the audit: the worst of every kind, with the joints in question marked."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pose.data.findings import KINDS, Finding
from pose.data.sources import Source
from pose.skeleton import LSP14, Skeleton

TILE = 220
CAPTION = 44
COLUMNS = 6
PER_KIND = COLUMNS
"""Tiles for one kind of finding: one row of the sheet."""

BACKGROUND = (24, 26, 30)
TEXT = (230, 230, 230)
LEFT, RIGHT, MIDDLE = (80, 160, 255), (255, 150, 60), (190, 190, 190)
MARK = (255, 40, 80)
SEVERITY_COLOUR = {"error": (255, 40, 80), "bad": (255, 150, 60), "warning": (250, 220, 90)}


def draw_findings(findings: Sequence[Finding], source: Source) -> Image.Image:
    """One row of up to six tiles per kind, worst first. Findings must be sorted by kind."""
    with_image = [finding for finding in findings if finding.file]
    rows = [list(group) for _, group in groupby(with_image, key=lambda finding: finding.kind)]
    sheet = Image.new("RGB", (COLUMNS * TILE, max(len(rows), 1) * (TILE + CAPTION)), BACKGROUND)
    if not rows:
        ImageDraw.Draw(sheet).text((10, 10), "The audit found nothing.", TEXT, ImageFont.load_default(20))
    people = {annotation["id"]: annotation for annotation in source.coco["annotations"] if "id" in annotation}
    for y, row in enumerate(rows):
        for x, finding in enumerate(row[:PER_KIND]):
            person = people.get(finding.annotation_id) if finding.annotation_id is not None else None
            tile = _tile(finding, source, person, len(row))
            sheet.paste(tile, (x * TILE, y * (TILE + CAPTION)))
    return sheet


def _tile(finding: Finding, source: Source, person: dict | None, total: int) -> Image.Image:
    tile = Image.new("RGB", (TILE, TILE + CAPTION), BACKGROUND)
    if finding.other_file:
        half = TILE // 2
        for left, file in ((0, finding.file), (half, finding.other_file)):
            picture = _picture(source.root / file, half - 4)
            if picture is not None:
                tile.paste(picture, (left + 2, CAPTION + (TILE - picture.height) // 2))
    else:
        picture = _picture(source.root / finding.file, TILE - 4, finding, person, source.skeleton)
        if picture is None:
            ImageDraw.Draw(tile).text((10, CAPTION + TILE // 2), "no picture", MARK, ImageFont.load_default(16))
        else:
            tile.paste(picture, ((TILE - picture.width) // 2, CAPTION + (TILE - picture.height) // 2))
    _caption(tile, finding, total)
    return tile


def _picture(
    path: Path, side: int, finding: Finding | None = None, person: dict | None = None, skeleton: Skeleton = LSP14
) -> Image.Image | None:
    """The image, or the person's part of it, scaled to fit `side` px; None where it cannot be decoded."""
    try:
        image = Image.open(path).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    joints = _joints(person, skeleton, image.size) if person is not None else {}
    window = _window(list(joints.values()), image.size)
    image = image.crop(window)
    scale = side / max(image.size)
    picture = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    if finding is not None:
        at = {name: ((x - window[0]) * scale, (y - window[1]) * scale) for name, (x, y) in joints.items()}
        _draw_joints(picture, at, finding, skeleton)
    return picture


def _joints(person: dict, skeleton: Skeleton, size: tuple[int, int]) -> dict[str, tuple[float, float]]:
    """Labelled joints as they are annotated, not as the audit leaves them, up to one image size outside."""
    found = {}
    for k, name in enumerate(skeleton.joints):
        x, y, v = person["keypoints"][3 * k : 3 * k + 3]
        if v > 0 and -size[0] < x < 2 * size[0] and -size[1] < y < 2 * size[1]:  # which NaN is not
            found[name] = (x, y)
    return found


def _window(points: list[tuple[float, float]], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """xyxy of the square-ish part of the image around the points, or the whole image where there are none."""
    if not points:
        return 0, 0, *size
    xs, ys = zip(*points, strict=True)
    margin = 0.25 * max(max(xs) - min(xs), max(ys) - min(ys), 40)
    return round(min(xs) - margin), round(min(ys) - margin), round(max(xs) + margin), round(max(ys) + margin)


def _draw_joints(
    picture: Image.Image, at: dict[str, tuple[float, float]], finding: Finding, skeleton: Skeleton
) -> None:
    """Joints and limbs; those of the finding in red."""
    draw = ImageDraw.Draw(picture)
    for a, b in skeleton.limbs:
        if a in at and b in at:
            marked = a in finding.joints and b in finding.joints
            draw.line([at[a], at[b]], fill=MARK if marked else _side_colour(a, b), width=4 if marked else 2)
    for name, (x, y) in at.items():
        radius = 5 if name in finding.joints else 2
        colour = MARK if name in finding.joints else _side_colour(name, name)
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], outline=colour, width=2)


def _side_colour(a: str, b: str) -> tuple[int, int, int]:
    for side, colour in (("left", LEFT), ("right", RIGHT)):
        if a.startswith(side) and b.startswith(side):
            return colour
    return MIDDLE


def _caption(tile: Image.Image, finding: Finding, total: int) -> None:
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(11)
    draw.text((4, 2), f"{finding.kind} (of {total})", SEVERITY_COLOUR[KINDS[finding.kind].severity], font)
    files = [Path(file).name for file in (finding.file, finding.other_file) if file]
    draw.text((4, 15), " and ".join(files), TEXT, font)
    draw.text((4, 28), finding.message[:41], TEXT, font)
