"""Drawing for the generated scenes: a pinhole camera, a canvas with a depth buffer, and noise.

Units are metres: x to the right, y up from the ground, z forward. Everything that stands is drawn
with one primitive, an upright wall between two ground points; a painter colours it in the wall's
own coordinates. Nothing is antialiased, so the label of a pixel is that of the thing that gave it
its colour.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# What a painter returns as the label of a pixel that it leaves alone.
CLEAR = 255
_NEAR = 0.8
_PERIOD = 512  # the noise repeats after as many steps


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along z.

    Attributes:
        size: (height, width) of the image in pixels.
        focal: focal length in pixels.
        center: column of the optical axis.
        horizon: row of the horizon.
        height: metres above the ground.
    """

    size: tuple[int, int]
    focal: float
    center: float
    horizon: float
    height: float

    @property
    def slopes(self) -> np.ndarray:
        """float32 [rows]: metres below the camera per metre of depth."""
        return ((np.arange(self.size[0]) + 0.5 - self.horizon) / self.focal).astype(np.float32)

    @property
    def tangents(self) -> np.ndarray:
        """float32 [columns]: metres to the right per metre of depth."""
        return ((np.arange(self.size[1]) + 0.5 - self.center) / self.focal).astype(np.float32)


class Surface(NamedTuple):
    """Where a painter has to paint: coordinates on a wall, per pixel.

    Attributes:
        along: float32 [h, w], metres from the wall's start.
        up: float32 [h, w], metres above the ground.
        pixel: float32 [1, w], width of a pixel in metres at that depth.
    """

    along: np.ndarray
    up: np.ndarray
    pixel: np.ndarray


# (surface) -> (color float32 [h, w, 3] or [3], label uint8 [h, w] or a number)
Painter = Callable[[Surface], tuple[np.ndarray, np.ndarray | int]]


class Canvas:
    """An image in the making.

    Attributes:
        color: float32 [H, W, 3], 0..1.
        label: uint8 [H, W], Cityscapes label ids.
        depth: float32 [H, W], metres; infinite where nothing is drawn yet.
    """

    def __init__(self, camera: Camera, background: int):
        self.camera = camera
        self.color = np.zeros((*camera.size, 3), np.float32)
        self.label = np.full(camera.size, background, np.uint8)
        self.depth = np.full(camera.size, np.inf, np.float32)
        self._slopes = camera.slopes
        self._tangents = camera.tangents

    def wall(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        height: float,
        painter: Painter,
        bottom: float = 0.0,
    ) -> None:
        """Draws an upright wall, hidden where something nearer is drawn already.

        Args:
            start: (x, z) of one end; the painter's `along` is measured from here.
            end: (x, z) of the other end.
            height: of the upper edge above the ground.
            painter: colours the wall.
            bottom: of the lower edge above the ground.
        """
        length = float(np.hypot(end[0] - start[0], end[1] - start[1]))
        ends = _clip(start, end)
        if ends is None or length == 0.0:
            return
        camera = self.camera
        columns = sorted(camera.center + camera.focal * x / z for x, z in ends)
        first = max(int(np.floor(columns[0])), 0)
        stop = min(int(np.ceil(columns[1])) + 1, camera.size[1])
        if first >= stop:
            return
        tangents = self._tangents[first:stop]
        dx, dz = end[0] - start[0], end[1] - start[1]
        across = dx - tangents * dz
        share = (tangents * start[1] - start[0]) / np.where(np.abs(across) < 1e-9, 1e-9, across)
        z = (start[1] + share * dz).astype(np.float32)
        seen = (share >= 0.0) & (share <= 1.0) & (z >= _NEAR * 0.999)
        if not seen.any():
            return
        nearest = float(z[seen].min())
        farthest = float(z[seen].max())
        rows = [
            camera.horizon + camera.focal * (camera.height - y) / d
            for y in (bottom, height)
            for d in (nearest, farthest)
        ]
        top = min(max(int(np.floor(min(rows))), 0), camera.size[0])
        base = max(min(int(np.ceil(max(rows))) + 1, camera.size[0]), 0)
        if top >= base:
            return
        window = (slice(top, base), slice(first, stop))
        up = camera.height - self._slopes[top:base, None] * z[None, :]
        visible = (
            seen[None, :] & (up >= bottom) & (up <= height) & (z[None, :] < self.depth[window])
        )
        if not visible.any():
            return
        along = np.broadcast_to((share * length).astype(np.float32)[None, :], up.shape)
        color, label = painter(Surface(along, up, (z / camera.focal)[None, :]))
        visible &= np.asarray(label) != CLEAR
        self.color[window] = np.where(visible[:, :, None], color, self.color[window])
        self.label[window] = np.where(visible, label, self.label[window])
        self.depth[window] = np.where(visible, z[None, :], self.depth[window])


def _clip(
    start: tuple[float, float], end: tuple[float, float]
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Cuts off what lies nearer than the near plane; None where nothing is left."""
    if start[1] < _NEAR and end[1] < _NEAR:
        return None
    ends = []
    for here, there in ((start, end), (end, start)):
        if here[1] < _NEAR:
            share = (_NEAR - here[1]) / (there[1] - here[1])
            here = (here[0] + share * (there[0] - here[0]), _NEAR)
        ends.append(here)
    return ends[0], ends[1]


@functools.cache
def _table() -> np.ndarray:
    """float32 [512 * 512] of random numbers; looking one up takes a fifth of the time of a hash."""
    return np.random.default_rng(0).random(_PERIOD * _PERIOD, np.float32)


def _row(i: np.ndarray, seed: int) -> np.ndarray:
    return ((i + (seed * 40503 >> 4) % _PERIOD) % _PERIOD) * _PERIOD


def _column(j: np.ndarray, seed: int) -> np.ndarray:
    return (j + (seed * 30011 >> 5) % _PERIOD) % _PERIOD


def hash01(i: np.ndarray, j: np.ndarray, seed: int) -> np.ndarray:
    """A float32 in [0, 1) for each pair of whole numbers, as if random, always the same."""
    i, j = np.asarray(i).astype(np.int32), np.asarray(j).astype(np.int32)
    return _table()[_row(i, seed) + _column(j, seed)]


def chance(number: int, seed: int) -> float:
    """One number of `hash01`, for whatever is decided once."""
    return float(hash01(np.array(number), np.array(0), seed))


def noise(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """Smooth noise of period 1 in both coordinates, in [0, 1)."""
    x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
    i, j = np.floor(x), np.floor(y)
    u, v = x - i, y - j
    u, v = u * u * (3.0 - 2.0 * u), v * v * (3.0 - 2.0 * v)
    i, j = i.astype(np.int32), j.astype(np.int32)
    table = _table()
    left, right = _row(i, seed), _row(i + 1, seed)
    here, below = _column(j, seed), _column(j + 1, seed)
    upper = table[left + here] * (1.0 - u) + table[right + here] * u
    lower = table[left + below] * (1.0 - u) + table[right + below] * u
    return upper * (1.0 - v) + lower * v


def layered_noise(x: np.ndarray, y: np.ndarray, seed: int, layers: int) -> np.ndarray:
    """Noise of periods 1, 1/2, 1/4, ..., each half as strong as the one before; in [0, 1)."""
    total = noise(x, y, seed)
    for layer in range(1, layers):
        total = total + noise(x * 2.0**layer, y * 2.0**layer, seed + 7919 * layer) * 0.5**layer
    return total / (2.0 - 0.5 ** (layers - 1))


def mix(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Goes from color a (share 0) to color b (share 1); `share` has no color axis."""
    share = np.asarray(share, np.float32)[..., None]
    return a * (1.0 - share) + b * share
