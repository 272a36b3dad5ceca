"""Articulated bodies: random poses within joint limits, in three dimensions, in units of the person's stature.

Axes are the camera's: x right, y down, z away from the viewer. Left and right are the person's own. Nothing but the
side one sees of a body (face, shirt front, knees, feet) tells left from right, as in photographs, so that mirroring
an image and swapping the names gives a true example again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SPINE = (0.12, 0.185)
"""Pelvis to waist, waist to neck."""
SHOULDER, HIP = 0.125, 0.075
"""Half the distance between the two sides."""
UPPER_ARM, FOREARM, HAND = 0.165, 0.15, 0.07
THIGH, SHIN, FOOT = 0.235, 0.23, 0.09
HEAD_CENTRE, HEAD_TOP = 0.125, 0.193
"""Above the neck, along the head's own axis."""
FACE = {
    "nose": (0.0, -0.1, 1.0),
    "left_eye": (0.38, 0.12, 0.9),
    "right_eye": (-0.38, 0.12, 0.9),
    "left_ear": (1.0, 0.0, 0.0),
    "right_ear": (-1.0, 0.0, 0.0),
}
"""Directions from the head's centre, along its left, up and forward axes."""
HEAD_RADII = (0.06, 0.08)
"""Half the width and half the height of the head."""

FACING_VIEWER = np.array([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0]])
"""Rows: left, up and forward of a body that looks at the camera."""


@dataclass(frozen=True)
class Figure:
    """One posed body. Frames hold the unit vectors left, up and forward as rows [3, 3]."""

    points: dict[str, np.ndarray]
    """[3] by name: joints of both skeletons, hands, toes, pelvis, head_centre."""
    head: np.ndarray
    chest: np.ndarray


@dataclass(frozen=True)
class Person:
    """A figure placed in the image."""

    figure: Figure
    unit: float
    """Stature in px."""
    origin: np.ndarray
    """[2] px, the pelvis."""

    def pixel(self, name: str) -> np.ndarray:
        """[2] px."""
        return self.figure.points[name][:2] * self.unit + self.origin

    @property
    def trunk_depth(self) -> float:
        """Statures from the camera's plane through the pelvis to the middle of the trunk."""
        return float(self.figure.points["neck"][2] + self.figure.points["pelvis"][2]) / 2


def turn(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """[3, 3] rotation of a (left, up, forward) frame, degrees: yaw to its left, pitch forwards, roll to its left."""
    y, p, r = np.radians([yaw, pitch, roll])
    about_up = np.array([[np.cos(y), 0, -np.sin(y)], [0, 1, 0], [np.sin(y), 0, np.cos(y)]])
    about_left = np.array([[1, 0, 0], [0, np.cos(p), np.sin(p)], [0, -np.sin(p), np.cos(p)]])
    about_forward = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return about_forward @ about_left @ about_up


def random_figure(rng: np.random.Generator) -> Figure:
    """A body in a random pose; its pelvis is at the origin."""
    yaw = rng.normal(0, 28) if rng.random() < 0.7 else rng.uniform(-180, 180)
    pelvis = turn(0, rng.normal(0, 7), 0) @ turn(yaw, 0, 0) @ FACING_VIEWER
    chest = turn(rng.normal(0, 12), abs(rng.normal(0, 14)), rng.normal(0, 9)) @ pelvis
    head = turn(rng.normal(0, 20), rng.normal(0, 10), rng.normal(0, 8)) @ chest
    points = {"pelvis": np.zeros(3)}
    points["neck"] = SPINE[0] * pelvis[1] + SPINE[1] * chest[1]
    points["head_centre"] = points["neck"] + HEAD_CENTRE * head[1] + 0.015 * head[2]
    points["head_top"] = points["neck"] + HEAD_TOP * head[1] + 0.015 * head[2]
    crouch = max(0.0, rng.normal(-5, 45))
    for side, sign in (("left", 1.0), ("right", -1.0)):
        _arm(rng, points, chest, side, sign)
        _leg(rng, points, pelvis, side, sign, crouch)
    for name, direction in FACE.items():
        unit = np.array(direction) / np.linalg.norm(direction)
        points[name] = points["head_centre"] + 0.85 * (unit * (HEAD_RADII[0], HEAD_RADII[1], HEAD_RADII[0])) @ head
    tilt = rng.normal(0, 12) if rng.random() < 0.85 else rng.normal(0, 60)
    return _tilted(points, head, chest, np.radians(tilt))


def _tilted(points: dict[str, np.ndarray], head: np.ndarray, chest: np.ndarray, angle: float) -> Figure:
    """The figure turned in the image plane."""
    c, s = np.cos(angle), np.sin(angle)
    plane = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    return Figure({name: point @ plane for name, point in points.items()}, head @ plane, chest @ plane)


def _arm(rng: np.random.Generator, points: dict[str, np.ndarray], chest: np.ndarray, side: str, sign: float) -> None:
    """Shoulder, elbow, wrist and hand of one side. An arm hangs, reaches out or is raised."""
    centre, spread = ((22, 13), (80, 22), (150, 18))[rng.choice(3, p=(0.55, 0.27, 0.18))]
    raised = np.clip(rng.normal(centre, spread), 3, 178)
    azimuth = np.radians(rng.uniform(-25, 100))  # 0: sideways, 90: straight ahead
    bend = np.radians(150 * rng.beta(1.1, 1.9))
    outward, up, forward = sign * chest[0], chest[1], chest[2]
    angle = np.radians(raised)
    upper = -np.cos(angle) * up + np.sin(angle) * (np.cos(azimuth) * outward + np.sin(azimuth) * forward)
    # an elbow bends towards the front, the face and the middle of the body
    inner = _perpendicular(0.8 * forward + 0.5 * up - rng.uniform(-0.4, 0.8) * outward, upper)
    lower = np.cos(bend) * upper + np.sin(bend) * inner
    shoulder = points["neck"] + SHOULDER * outward - (0.035 - 0.035 * max(0.0, -np.cos(angle))) * up
    points[f"{side}_shoulder"] = shoulder
    points[f"{side}_elbow"] = shoulder + UPPER_ARM * upper
    points[f"{side}_wrist"] = points[f"{side}_elbow"] + FOREARM * lower
    points[f"{side}_hand"] = points[f"{side}_wrist"] + HAND * lower


def _leg(
    rng: np.random.Generator, points: dict[str, np.ndarray], pelvis: np.ndarray, side: str, sign: float, crouch: float
) -> None:
    """Hip, knee, ankle and toe of one side. `crouch` in degrees is shared by both legs, strides are not."""
    flexion = np.clip(0.8 * crouch + rng.normal(8, 20), -30, 120)
    spread = np.clip(rng.normal(9, 10), -8, 55)
    bend = np.radians(np.clip(0.9 * max(flexion, 0) + rng.normal(5, 22), 2, 140))
    outward, up, forward = sign * pelvis[0], pelvis[1], pelvis[2]
    f, a = np.radians(flexion), np.radians(spread)
    upper = np.cos(a) * (-np.cos(f) * up + np.sin(f) * forward) + np.sin(a) * outward
    behind = _perpendicular(-np.cos(f) * forward - np.sin(f) * up, upper)
    lower = np.cos(bend) * upper + np.sin(bend) * behind
    hip = HIP * outward
    points[f"{side}_hip"] = hip
    points[f"{side}_knee"] = hip + THIGH * upper
    points[f"{side}_ankle"] = points[f"{side}_knee"] + SHIN * lower
    points[f"{side}_toe"] = points[f"{side}_ankle"] + FOOT * _unit(_perpendicular(-behind, lower) + 0.3 * lower)


def _perpendicular(vector: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Unit vector: the part of `vector` at right angles to the unit vector `axis`."""
    return _unit(vector - (vector @ axis) * axis)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-9)
