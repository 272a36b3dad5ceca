"""Videos read to their end and to where they break, and the annotated ones that are written."""

from __future__ import annotations

import struct
import weakref
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pose.errors import ConfigError, DataError
from pose.inference.frames import Frame
from pose.inference.video import Camera, Video, VideoWriter


def read(path: Path) -> tuple[list[Frame], list[DataError]]:
    outcomes = list(Video(path).frames())
    return [o for o in outcomes if isinstance(o, Frame)], [o for o in outcomes if isinstance(o, DataError)]


def shortened(path: Path, share: float) -> Path:
    """The first part of a file's bytes under another name."""
    cut = path.with_name(f"cut-{path.name}")
    whole = path.read_bytes()
    cut.write_bytes(whole[: int(share * len(whole))])
    return cut


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")])
def test_every_frame_comes_in_order(tmp_path: Path, make_video, name: str, codec: str) -> None:
    path = make_video(tmp_path / name, 40, codec=codec)
    frames, errors = read(path)
    assert not errors
    assert Video(path).count == len(frames) == 40
    assert [frame.number for frame in frames] == list(range(40))
    np.testing.assert_allclose([frame.seconds for frame in frames], np.arange(40) / 30, atol=2e-3)
    for frame in (frames[0], frames[25]):
        bright = np.flatnonzero((np.asarray(frame.image)[60] > 180).all(axis=1))
        assert abs(bright[0] - 4 * frame.number) <= 2, "another frame than its number says"
        assert frame.source == str(path)


@pytest.mark.parametrize(("name", "options"), [("a.mp4", {"movflags": "+faststart"}), ("a.mkv", {})])
@pytest.mark.parametrize("share", [0.5, 0.85])
def test_video_that_breaks_off_keeps_what_was_read(tmp_path: Path, make_video, name: str, options, share) -> None:
    cut = shortened(make_video(tmp_path / name, 60, **options), share)
    frames, errors = read(cut)
    assert 60 * share * 0.7 < len(frames) < 60
    assert len(errors) == 1
    assert str(cut) in str(errors[0])
    assert f"breaks off after {len(frames)}" in str(errors[0])
    assert "of 2.0 s" in str(errors[0])


def test_damage_within_costs_its_frames_alone(tmp_path: Path, make_video) -> None:
    path = make_video(tmp_path / "a.mp4", 60)
    damaged = bytearray(path.read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    path.write_bytes(bytes(damaged))
    frames, errors = read(path)
    assert 45 < len(frames) < 60
    assert len(errors) == 1
    assert "is damaged" in str(errors[0])
    assert f"the other {len(frames)} are done" in str(errors[0])


def test_what_is_no_video_is_named(tmp_path: Path, make_video) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    unfinished = shortened(make_video(tmp_path / "a.mp4", 10), 0.5)  # its index would have come last
    sound = tmp_path / "sound.mkv"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        tone.sample_rate = 8000
        container.mux(stream.encode(tone))
    for path, words in {text: "is not a video", unfinished: "index was written", sound: "no pictures in it"}.items():
        frames, errors = read(path)
        assert not frames
        assert [str(path) in str(error) and words in str(error) for error in errors] == [True], errors


def test_frames_come_upright(tmp_path: Path, make_video) -> None:
    """A telephone's portrait recording: lying frames, and a matrix that says to turn them by 90 degrees clockwise."""
    path = make_video(tmp_path / "a.mp4", 5)
    stored = path.read_bytes()
    one = 1 << 16
    identity = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", 0, one, 0, -one, 0, 0, 120 * one, 0, 1 << 30)
    place = stored.index(identity, stored.index(b"tkhd"))
    path.write_bytes(stored[:place] + turned + stored[place + len(turned) :])
    frames, _ = read(path)
    assert frames[0].image.size == (120, 160)
    # The block at x 0..40, y 40..80 of the lying frame: its left edge is on top now, its bottom edge to the left.
    bright = (np.asarray(frames[0].image) > 180).all(axis=2)
    rows, columns = np.flatnonzero(bright.sum(axis=1) > 30), np.flatnonzero(bright.sum(axis=0) > 30)
    assert np.abs([rows[0], rows[-1] - 39, columns[0] - 40, columns[-1] - 79]).max() <= 1


def test_frames_are_decoded_one_at_a_time(tmp_path: Path, make_video) -> None:
    given: list[weakref.ref[Image.Image]] = []
    for outcome in Video(make_video(tmp_path / "a.mp4", 40)).frames():
        assert isinstance(outcome, Frame)
        given.append(weakref.ref(outcome.image))
        assert sum(image() is not None for image in given) <= 2, "this frame and at most the one before it"


def test_written_video_has_the_frames_at_their_moments(tmp_path: Path) -> None:
    """An uneven rate, an odd size, two frames at one moment, and one frame of another size."""
    moments = [0.0, 0.1, 0.1, 0.5, 2.0]
    path = tmp_path / "new" / "out.mp4"
    with VideoWriter(path) as writer:
        for n, moment in enumerate(moments):
            size = (161, 121) if n < 4 else (80, 60)
            writer.write(Image.new("RGB", size, (50 * n, 255 - 50 * n, 128)), moment)
    assert [file.name for file in path.parent.iterdir()] == ["out.mp4"]
    frames, errors = read(path)
    assert not errors
    np.testing.assert_allclose([frame.seconds for frame in frames], moments, atol=1e-3)
    for n, frame in enumerate(frames):
        assert frame.image.size == (160, 120)
        assert np.abs(np.asarray(frame.image.resize((1, 1))) - np.array([50.0 * n, 255 - 50 * n, 128])).max() < 12


def test_writer_without_frames_leaves_nothing(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "out.mp4"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_writing_where_one_cannot_is_named(tmp_path: Path) -> None:
    (tmp_path / "out.mp4").mkdir()
    with pytest.raises(DataError, match=r"out\.mp4 cannot be finished"), VideoWriter(tmp_path / "out.mp4") as writer:
        writer.write(Image.new("RGB", (64, 48)), 0.0)


def test_camera_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"camera 73 .* cannot be opened"):
        list(Camera(73).frames())


def test_camera_gives_frames_until_it_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg's test pattern in the camera's place: another device of the same library."""
    monkeypatch.setattr("pose.inference.video._device", lambda index: ("testsrc=size=64x48:duration=0.2", "lavfi"))
    frames = list(Camera(0).frames())
    assert [frame.number for frame in frames] == list(range(5))
    assert {frame.image.size for frame in frames} == {(64, 48)}
    assert sorted(frame.seconds for frame in frames) == [frame.seconds for frame in frames]
    assert Camera(0).count is None
