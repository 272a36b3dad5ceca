"""The audit of a dataset, before any accelerator starts: what is wrong, what is left out, what is only odd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from pose.config import CheckParams
from pose.data import duplicates
from pose.data.check_images import Scan, scan_images
from pose.data.check_people import Annotated, check_people
from pose.data.check_regions import Region, area_of, check_outlines, find_regions, is_region
from pose.data.findings import KINDS, Finding
from pose.data.sources import Source
from pose.errors import DataError

IMAGE_FIELDS: dict[str, type | tuple[type, ...]] = {"id": int, "file_name": str, "width": int, "height": int}
PERSON_FIELDS: dict[str, type | tuple[type, ...]] = {"id": int, "image_id": int, "keypoints": list, "bbox": list}
NAMED_IN_ERROR = 5
"""Culprits that the error's text names; the JSON lists all."""


@dataclass(frozen=True)
class Person:
    """An annotated person as the audit leaves it."""

    annotation_id: int
    image_id: int
    keypoints: np.ndarray
    """[K, 3] float64 x, y, v: clipped to the image, dropped joints and positions of unlabelled ones are zero."""
    box: np.ndarray
    """[4] float64 xyxy, inside the image."""
    area: float
    """Square px of the visible outline where the dataset says it, else the box's."""


@dataclass(frozen=True)
class Audit:
    """All that was found, and what remains usable."""

    findings: tuple[Finding, ...]
    people: tuple[Person, ...]
    """Those who are kept, by image id and annotation id."""
    regions: tuple[Region, ...]
    """Crowds, people without keypoints and people left out: where nothing is known; by image id and annotation id."""
    outlines: dict[int, dict]
    """Run-length codes, by annotation id, of whoever has an outline."""
    left_out: tuple[int, ...]
    """Annotation ids of people who are not kept, and of crowds and the like of which nothing is left."""
    images: tuple[dict, ...]
    """COCO records of the usable images, by id; an image without people is among them."""
    images_total: int
    sha256: dict[int, str]
    """By image id, of the file's bytes."""
    groups: tuple[tuple[int, ...], ...]
    """Image ids of near-duplicates, each group sorted."""

    def counts(self) -> dict[str, int]:
        """Findings by kind, in the order of KINDS, without zeros."""
        found = Counter(finding.kind for finding in self.findings)
        return {kind: found[kind] for kind in KINDS if found[kind]}

    def raise_if_failed(self) -> None:
        """Raises DataError naming the first culprits, if there is an error among the findings."""
        errors = [finding for finding in self.findings if finding.severity == "error"]
        if errors:
            bad = [finding for finding in self.findings if finding.severity == "bad"]
            raise DataError(f"The audit stops this dataset.{_named('error', errors)}{_named('left out', bad)}")

    def summary(self) -> Table:
        """One row per kind of finding."""
        total = len(self.people) + len(self.left_out)
        title = (
            f"{len(self.people)} of {total} people in {len(self.images)} of {self.images_total} images are usable, "
            f"{len(self.groups)} groups of near-duplicates"
        )
        if self.regions:
            title += f"; {len(self.regions)} regions (crowds, people without keypoints, people left out) are ignored"
        table = Table("severity", "kind", "count", "meaning", "first", title=title, title_justify="left")
        first = {finding.kind: finding for finding in reversed(self.findings)}
        for kind, count in self.counts().items():
            severity, meaning = KINDS[kind]
            table.add_row(severity, kind, str(count), meaning, f"{first[kind].file} {first[kind].message}")
        return table

    def to_json(self) -> dict:
        """Counts, who is left out, near-duplicates and every finding, as JSON values."""
        return {
            "images": {"total": self.images_total, "usable": len(self.images)},
            "people": {"total": len(self.people) + len(self.left_out), "usable": len(self.people)},
            "regions": {"total": len(self.regions), "people": sum(region.person for region in self.regions)},
            "counts": self.counts(),
            "left_out": list(self.left_out),
            "near_duplicates": [list(group) for group in self.groups],
            "findings": [{"severity": f.severity, **asdict(f), "weight": round(f.weight, 4)} for f in self.findings],
        }

    def contact_sheet(self, source: Source, path: Path) -> None:
        """Draws the worst of every kind into one PNG."""
        from pose.data.contact_sheet import draw_findings

        draw_findings(self.findings, source).save(path)


def audit(source: Source, params: CheckParams) -> Audit:
    """Looks at every image and every person of a source. Decodes all images: some seconds for ten thousand.

    Nothing is raised here; `raise_if_failed` does.
    """
    images, findings = _whole_images(source.coco.get("images", []))
    annotations, more = _whole_annotations(source, {image["id"]: image["file_name"] for image in images})
    scans = scan_images(source.root, images, params.max_pixels)
    usable = [image for image, scan in zip(images, scans, strict=True) if scan.thumbnail is not None]
    groups, twins = _near_duplicates(images, scans, params.duplicate_correlation)
    meant = [annotation for annotation in annotations if not is_region(annotation)]
    annotated = _as_arrays(meant, usable, source.skeleton.size)
    check_people(annotated, source.skeleton, params)
    by_id = {image["id"]: image for image in usable}
    outlines, unclear = check_outlines(annotations, by_id)
    people = _kept_people(annotated, {annotation["id"]: annotation for annotation in meant})
    kept = {person.annotation_id for person in people}
    regions, empty = find_regions(annotations, by_id, outlines, kept)

    ignored = {region.annotation_id for region in regions}
    spared = {annotation["id"] for annotation in annotations if is_region(annotation)} & ignored
    left_out = tuple(sorted({annotation["id"] for annotation in annotations} - kept - spared))
    findings += more + [f for scan in scans for f in scan.findings] + annotated.findings + unclear + empty + twins
    findings += _too_much_left_out(len(images) - len(usable), len(images), "images", params.max_bad_share)
    findings += _too_much_left_out(len(left_out), len(annotations), "people", params.max_bad_share)
    return Audit(
        findings=tuple(_in_order(findings)),
        people=people,
        regions=tuple(sorted(regions, key=lambda region: (region.image_id, region.annotation_id))),
        outlines=outlines,
        left_out=left_out,
        images=tuple(sorted(usable, key=lambda image: image["id"])),
        images_total=len(images),
        sha256={image["id"]: scan.sha256 for image, scan in zip(images, scans, strict=True)},
        groups=groups,
    )


def _whole_images(records: Sequence[dict]) -> tuple[list[dict], list[Finding]]:
    """The records that have all their fields and are the first with their id and file; findings about the rest."""
    whole, findings = [], []
    ids: dict[int, dict] = {}
    files: dict[str, dict] = {}
    for position, record in enumerate(records):
        if fault := _field_fault(record, IMAGE_FIELDS):
            file = str(record.get("file_name", ""))
            findings.append(Finding("missing_key", f"images[{position}] {fault}", file=file))
        elif record["id"] in ids:
            said = f"images[{position}] has id {record['id']}, as {ids[record['id']]['file_name']} has"
            findings.append(Finding("duplicate_image_id", said, record["file_name"], record["id"]))
        elif record["file_name"] in files:
            said = f"images {files[record['file_name']]['id']} and {record['id']} are this file"
            findings.append(Finding("duplicate_file", said, record["file_name"], record["id"]))
        else:
            ids[record["id"]] = files[record["file_name"]] = record
            whole.append(record)
    return whole, findings


def _whole_annotations(source: Source, files: Mapping[int, str]) -> tuple[list[dict], list[Finding]]:
    """The annotations that have all their fields, the skeleton's joints, a new id and a known image.

    files: the images' file names, by id.
    """
    whole, findings = [], []
    seen: set[int] = set()
    wanted = 3 * source.skeleton.size
    for position, record in enumerate(source.coco.get("annotations", [])):
        place = f"annotations[{position}]"
        if fault := _field_fault(record, PERSON_FIELDS):
            findings.append(Finding("missing_key", f"{place} {fault}", annotation_id=record.get("id")))
            continue
        where = {"image_id": record["image_id"], "annotation_id": record["id"]}
        if len(record["keypoints"]) != wanted:
            said = f"{place} has {len(record['keypoints'])} numbers in keypoints, {source.skeleton.name} has {wanted}"
            findings.append(Finding("joint_count", said, **where))
        elif len(record["bbox"]) != 4:
            findings.append(Finding("missing_key", f"{place} has {len(record['bbox'])} numbers in bbox", **where))
        elif record["id"] in seen:
            findings.append(Finding("duplicate_annotation_id", f"{place} has id {record['id']} again", **where))
        elif record["image_id"] not in files:
            said = f"{place} is in image {record['image_id']}, which is not listed"
            findings.append(Finding("unknown_image", said, **where))
        elif fault := _number_fault(record):
            said = f"{place}, id {record['id']}, {fault}"
            findings.append(Finding("missing_key", said, files[record["image_id"]], **where))
        else:
            seen.add(record["id"])
            whole.append(record)
    if not whole and not findings:
        findings.append(Finding("no_people", "there is not one annotation"))
    return whole, findings


def _field_fault(record: dict, expected: dict[str, type | tuple[type, ...]]) -> str:
    for key, kind in expected.items():
        if key not in record:
            return f"has no {key!r}"
        if not isinstance(record[key], kind):
            return f"has {key} = {record[key]!r}"
    return ""


def _number_fault(record: dict) -> str:
    for key in ("keypoints", "bbox"):
        # By exact type: NumPy would take "12" and true for numbers.
        wrong = [type(value) not in (int, float) for value in record[key]]
        if any(wrong):
            return f"has {key}[{wrong.index(True)}] = {record[key][wrong.index(True)]!r}, expected a number"
    return ""


def _as_arrays(annotations: Iterable[dict], usable: Iterable[dict], joints: int) -> Annotated:
    """The people in usable images, by image id and annotation id."""
    images = {image["id"]: image for image in usable}
    chosen = [annotation for annotation in annotations if annotation["image_id"] in images]
    chosen.sort(key=lambda annotation: (annotation["image_id"], annotation["id"]))
    where = [images[annotation["image_id"]] for annotation in chosen]
    triples = np.array([annotation["keypoints"] for annotation in chosen], dtype=np.float64).reshape(-1, joints, 3)
    boxes = np.array([annotation["bbox"] for annotation in chosen], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Annotated(
        ids=np.array([annotation["id"] for annotation in chosen], dtype=np.int64),
        image_ids=np.array([image["id"] for image in where], dtype=np.int64),
        files=[image["file_name"] for image in where],
        sizes=np.array([(image["width"], image["height"]) for image in where], dtype=np.float64).reshape(-1, 2),
        points=triples[:, :, :2].copy(),
        visibility=triples[:, :, 2].copy(),
        boxes=boxes,
        kept=np.ones(len(chosen), dtype=bool),
    )


def _kept_people(annotated: Annotated, records: Mapping[int, dict]) -> tuple[Person, ...]:
    triples = np.concatenate([annotated.points, annotated.visibility[..., None]], axis=2)
    people = []
    for row in np.flatnonzero(annotated.kept):
        number, box = int(annotated.ids[row]), annotated.boxes[row]
        area = area_of(records[number]) or float((box[2:] - box[:2]).prod())
        people.append(Person(number, int(annotated.image_ids[row]), triples[row], box, area))
    return tuple(people)


def _near_duplicates(
    images: list[dict], scans: list[Scan], threshold: float
) -> tuple[tuple[tuple[int, ...], ...], list[Finding]]:
    """Groups of image ids that show the same, and a finding for each pair."""
    seen = [(image, scan) for image, scan in zip(images, scans, strict=True) if scan.thumbnail is not None]
    seen.sort(key=lambda pair: pair[0]["id"])
    if not seen:
        return (), []
    pairs = duplicates.correlated_pairs(np.stack([s.thumbnail for _, s in seen if s.thumbnail is not None]), threshold)
    findings = []
    for i, j, correlation in pairs:
        (one, scan), (other, other_scan) = seen[i], seen[j]
        same = (
            "the same bytes as" if scan.sha256 == other_scan.sha256 else f"thumbnail correlates {correlation:.4f} with"
        )
        said = f"{same} {other['file_name']}"
        findings.append(
            Finding(
                "near_duplicate", said, one["file_name"], one["id"], other_file=other["file_name"], weight=correlation
            )
        )
    found = duplicates.groups([(i, j) for i, j, _ in pairs])
    return tuple(tuple(seen[member][0]["id"] for member in group) for group in found), findings


def _too_much_left_out(count: int, total: int, what: str, allowed: float) -> list[Finding]:
    if count <= allowed * total:
        return []
    return [Finding("bad_share", f"{count} of {total} {what} ({count / total:.1%}) are left out, {allowed:.1%} may be")]


def _in_order(findings: list[Finding]) -> list[Finding]:
    """By kind as KINDS lists them, then worst first, then by record."""
    order = {kind: position for position, kind in enumerate(KINDS)}

    def key(finding: Finding) -> tuple:
        return (
            order[finding.kind],
            -finding.weight,
            finding.image_id or 0,
            finding.annotation_id or 0,
            finding.message,
        )

    return sorted(findings, key=key)


def _named(title: str, findings: list[Finding]) -> str:
    if not findings:
        return ""
    more = f"; and {len(findings) - NAMED_IN_ERROR} more" if len(findings) > NAMED_IN_ERROR else ""
    return f" {title}: {'; '.join(str(finding) for finding in findings[:NAMED_IN_ERROR])}{more}."
