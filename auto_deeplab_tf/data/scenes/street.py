"""One street: what stands along it, from the style of its city and the random draws of its id."""

import dataclasses
import hashlib

import numpy as np

from auto_deeplab_tf.data.scenes import objects
from auto_deeplab_tf.data.scenes.drawing import Camera, Canvas
from auto_deeplab_tf.data.scenes.ground import Ground
from auto_deeplab_tf.data.scenes.light import Light, develop, sky_color
from auto_deeplab_tf.data.sets.cityscapes import LABEL_IDS as LABEL

IMAGE_SIZE = (128, 256)
_FAR = 110.0


@dataclasses.dataclass(frozen=True)
class _City:
    """What the scenes of one city have in common."""

    facades: tuple[tuple[float, float, float], ...]
    floors: tuple[int, int]
    pitched_roofs: float
    road_half: float
    sidewalk: float
    verges: float
    strip: float
    gaps: float
    trees: float
    fences: float
    traffic: float
    people: float
    focal: float
    camera_height: float
    horizon: float
    bad_weather: float
    hood: bool


def _rng(*parts: str) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256("/".join(parts).encode()).digest()))


_FACADES = (
    (0.72, 0.62, 0.50), (0.60, 0.34, 0.27), (0.78, 0.76, 0.71), (0.52, 0.50, 0.48), (0.80, 0.68,
    0.44), (0.66, 0.47, 0.38), (0.47, 0.52, 0.56), (0.70, 0.55, 0.52), (0.58, 0.60, 0.52), (0.40,
    0.36, 0.35),
)  # fmt: skip


def _city(name: str) -> _City:
    rng = _rng("city", name)
    low = int(rng.integers(1, 4))
    return _City(
        facades=tuple(_FACADES[i] for i in rng.choice(len(_FACADES), 5, replace=False)),
        floors=(low, low + int(rng.integers(2, 4))),
        pitched_roofs=rng.uniform(0.1, 0.8),
        road_half=rng.uniform(4.2, 6.5),
        sidewalk=rng.uniform(2.0, 3.6),
        verges=rng.uniform(0.1, 0.7),
        strip=rng.uniform(2.0, 5.0),
        gaps=rng.uniform(0.2, 0.45),
        trees=rng.uniform(0.5, 1.0),
        fences=rng.uniform(0.45, 0.8),
        traffic=rng.uniform(0.6, 1.0),
        people=rng.uniform(0.7, 1.2),
        focal=rng.uniform(0.80, 0.98),
        camera_height=rng.uniform(1.35, 1.75),
        horizon=rng.uniform(0.42, 0.48),
        bad_weather=rng.uniform(0.15, 0.4),
        hood=bool(rng.random() < 0.6),
    )


def render(image_id: str, size: tuple[int, int] = IMAGE_SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Draws a scene.

    Args:
        image_id: CITY_SEQUENCE_FRAME; any city name has a style.
        size: (height, width) of the image.

    Returns:
        (image, label): uint8 [height, width, 3] and uint8 [height, width], Cityscapes label ids.
    """
    city_name = image_id.split("_")[0]
    city = _city(city_name)
    rng = _rng("scene", image_id)
    light = Light.draw(rng, city.bad_weather)
    camera = Camera(
        size=size,
        focal=size[1] * city.focal * rng.uniform(0.96, 1.04),
        center=size[1] * rng.uniform(0.44, 0.56),
        horizon=size[0] * (city.horizon + rng.uniform(-0.025, 0.025)),
        height=city.camera_height,
    )
    return _Street(city, light, camera, rng).draw()


class _Street:
    """Draws one street.

    Positions along the street are (x, z), x from its centre line; `_place` bends them into the
    world. The camera stands at z = 0 on the lane that is `_lane` metres right of the centre line.
    """

    def __init__(self, city: _City, light: Light, camera: Camera, rng: np.random.Generator):
        self._city = city
        self._light = light
        self._camera = camera
        self._rng = rng
        self._canvas = Canvas(camera, LABEL["sky"])
        bend = rng.uniform(-1.0, 1.0) * 0.0022
        road_half = city.road_half * rng.uniform(0.9, 1.1)
        lane = road_half * rng.uniform(0.2, 0.5)
        sidewalk = city.sidewalk * rng.uniform(0.85, 1.15)

        def pair(chance, low, high):
            """Left and right: a width, or 0 where that side has none."""
            left, right = (
                rng.uniform(low, high) if rng.random() < chance else 0.0 for _ in range(2)
            )
            return left, right

        # Grass before the sidewalk, and between it and the houses.
        green = pair(city.verges, 1.2, 2.2)
        strip = pair(0.6, city.strip * 0.7, city.strip * 1.3)
        self._ground = Ground(
            road_half=road_half,
            verges=(road_half + green[0], road_half + green[1]),
            walks=(road_half + green[0] + sidewalk, road_half + green[1] + sidewalk),
            lines=(
                road_half + green[0] + sidewalk + strip[0],
                road_half + green[1] + sidewalk + strip[1],
            ),
            bend=bend,
            lane=lane,
            seed=int(rng.integers(2**31)),
            houses=([], []),
            shadows=[],
        )

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        self._sky()
        for side in (0, 1):
            self._roadside(side)
        self._skyline()
        self._furniture()
        self._traffic()
        self._pedestrians()
        self._ground.draw(self._canvas, self._light)
        self._hood()
        canvas = self._canvas
        return develop(canvas.color, canvas.depth, self._light, self._rng), canvas.label

    def _place(self, x: float, z: float) -> tuple[float, float]:
        return x - self._ground.lane + self._ground.bend * z * z, z

    def _sign(self, side: int) -> float:
        return -1.0 if side == 0 else 1.0

    # -- what is far away

    def _sky(self) -> None:
        self._canvas.color[:] = sky_color(self._camera, self._light, self._ground.seed)

    def _skyline(self) -> None:
        """Hazy houses and trees where the street is lost in the distance."""
        rng, z = self._rng, _FAR
        half = z * 1.3
        x = -half
        while x < half:
            width = rng.uniform(7.0, 22.0)
            if rng.random() < 0.55:
                height = rng.uniform(5.0, 8.0 + 4.0 * self._city.floors[1])
                painter = objects.facade(
                    self._facade_style(height), self._light.facing(0.0, -1.0), self._light
                )
                self._canvas.wall((x, z), (x + width, z), height, painter)
            else:
                height = rng.uniform(5.0, 10.0)
                painter = objects.hedge(
                    self._green(), height, self._light, int(rng.integers(2**31))
                )
                self._canvas.wall((x, z), (x + width, z), height, painter)
            x += width * rng.uniform(0.8, 1.0)

    # -- what lines the street

    def _roadside(self, side: int) -> None:
        rng, city, sign = self._rng, self._city, self._sign(side)
        line = self._ground.lines[side]
        z = rng.uniform(-8.0, 4.0)
        while z < _FAR - 8.0:
            length = rng.uniform(9.0, 20.0)
            end = min(z + length, _FAR - 4.0)
            if rng.random() < city.gaps:
                self._garden(side, z, end)
            else:
                self._house(side, line + rng.uniform(0.0, 0.6), z, end)
                if line - self._ground.walks[side] > 1.2 and rng.random() < city.fences * 0.5:
                    self._fence(side, self._ground.walks[side] + 0.25, z, end)
            z = end + (0.0 if rng.random() < 0.6 else rng.uniform(1.0, 4.0))
        # Behind everything, so that a gap between houses does not show the horizon.
        painter = objects.hedge(self._green(), 7.0, self._light, int(rng.integers(2**31)))
        for first in np.arange(2.0, _FAR, 12.0):
            x = sign * (line + 16.0)
            self._canvas.wall(self._place(x, first), self._place(x, first + 12.0), 7.0, painter)

    def _facade_style(self, height: float) -> objects.FacadeStyle:
        return objects.FacadeStyle.draw(
            self._rng, self._city.facades, height, self._city.pitched_roofs
        )

    def _house(self, side: int, line: float, z: float, end: float) -> None:
        rng, sign = self._rng, self._sign(side)
        floors = int(rng.integers(self._city.floors[0], self._city.floors[1] + 1))
        height = 3.0 * floors + rng.uniform(0.8, 2.0)
        style = self._facade_style(height)
        street_light = self._light.facing(-sign, 0.0)
        end_light = self._light.facing(0.0, -1.0)
        near, far = self._place(sign * line, z), self._place(sign * line, end)
        self._canvas.wall(near, far, style.top, objects.facade(style, street_light, self._light))
        depth = rng.uniform(8.0, 12.0)
        self._canvas.wall(
            near,
            self._place(sign * (line + depth), z),
            style.top,
            objects.facade(style, end_light, self._light),
        )
        self._ground.houses[side].append((z, end, height))
        if line - self._ground.walks[side] < 1.0:
            return
        if rng.random() < 0.5:
            self._bushes(side, z, end)

    def _garden(self, side: int, z: float, end: float) -> None:
        """A gap between houses: grass, trees, a fence or a hedge towards the street."""
        rng = self._rng
        border = self._ground.walks[side] + 0.25
        kind = rng.random()
        if kind < self._city.fences:
            self._fence(side, border, z, end)
        elif kind < self._city.fences + 0.25:
            x, height = self._sign(side) * border, rng.uniform(0.9, 1.7)
            painter = objects.hedge(self._green(), height, self._light, int(rng.integers(2**31)))
            self._canvas.wall(self._place(x, z), self._place(x, end), height, painter)
        for _ in range(int(rng.integers(1, 4))):
            offset = rng.uniform(3.0, 12.0)
            self._tree(
                self._sign(side) * (self._ground.walks[side] + offset),
                rng.uniform(z, end),
                rng.uniform(4.5, 8.5),
            )

    def _fence(self, side: int, line: float, z: float, end: float) -> None:
        x = self._sign(side) * line
        style = objects.FenceStyle.draw(self._rng)
        painter = objects.fence(style, self._light.facing(-self._sign(side), 0.0))
        self._canvas.wall(self._place(x, z), self._place(x, end), style.height, painter)

    def _bushes(self, side: int, z: float, end: float) -> None:
        rng = self._rng
        x = self._sign(side) * (self._ground.lines[side] - 0.5)
        position = max(z, 3.0)
        while position < end - 1.5:
            width, height = rng.uniform(1.2, 2.6), rng.uniform(0.7, 1.5)
            painter = objects.bush(
                self._green(), width, height, self._light, int(rng.integers(2**31))
            )
            here = self._place(x, position)
            self._canvas.wall(
                (here[0] - width / 2, here[1]), (here[0] + width / 2, here[1]), height, painter
            )
            position += width * rng.uniform(0.9, 2.5)

    def _green(self) -> np.ndarray:
        rng = self._rng
        return np.array(
            [rng.uniform(0.20, 0.38), rng.uniform(0.34, 0.48), rng.uniform(0.10, 0.20)], np.float32
        )

    # -- what stands on the sidewalk

    def _furniture(self) -> None:
        rng, city = self._rng, self._city
        for side in (0, 1):
            kerb = self._sign(side) * (self._ground.road_half + 0.45)
            spacing, z = rng.uniform(9.0, 14.0), rng.uniform(5.0, 10.0)
            with_trees = rng.random() < city.trees * 0.55
            lamps = int(rng.integers(0, 2))
            number = 0
            while z < 60.0:
                if number % 2 == lamps:
                    self._lamp(side, kerb, z)
                elif with_trees:
                    self._tree(kerb + 0.3 * self._sign(side), z, rng.uniform(4.0, 6.5))
                z += spacing * rng.uniform(0.85, 1.15)
                number += 1
            for _ in range(int(rng.integers(1, 4))):
                self._sign_post(side, kerb, rng.uniform(6.0, 26.0))
            if rng.random() < 0.55:
                self._traffic_light(side, kerb, rng.uniform(7.0, 22.0))
            for _ in range(int(rng.integers(0, 3))):
                self._clutter(side, rng.uniform(5.0, 25.0))

    def _upright(
        self, x: float, z: float, width: float, height: float, painter, bottom: float = 0.0
    ) -> None:
        """A flat thing that faces the camera, centred on (x, z) of the street."""
        here = self._place(x, z)
        self._canvas.wall(
            (here[0] - width / 2, here[1]), (here[0] + width / 2, here[1]), height, painter, bottom
        )

    def _pole_width(self, z: float, width: float) -> float:
        """At least two pixels and a bit, so that no pole is lost between the pixels."""
        return max(width, 2.2 * z / self._camera.focal)

    def _pole(self, x: float, z: float, width: float, height: float, color: np.ndarray) -> None:
        width = self._pole_width(z, width)
        self._upright(x, z, width, height, objects.pole(color, width, self._light))
        self._ground.shadows.append((x, z, width / 2 + 0.05, 0.15, height))

    def _lamp(self, side: int, x: float, z: float) -> None:
        rng = self._rng
        color = np.array([0.32, 0.34, 0.34], np.float32) * rng.uniform(0.5, 1.5)
        height = rng.uniform(5.5, 7.5)
        self._pole(x, z, 0.17, height, color)
        reach = rng.uniform(1.2, 2.2)
        thickness = self._pole_width(z, 0.16) * 0.8
        arm_x = x - self._sign(side) * reach / 2
        self._upright(
            arm_x,
            z,
            reach,
            height,
            objects.lamp_arm(color, self._light, side == 1),
            height - thickness,
        )

    def _sign_post(self, side: int, x: float, z: float) -> None:
        rng = self._rng
        size = rng.uniform(0.75, 1.0)
        middle = rng.uniform(2.3, 2.9)
        color = np.array([0.55, 0.56, 0.57], np.float32) * rng.uniform(0.7, 1.2)
        self._pole(x, z, 0.10, middle, color)
        painter = objects.sign(int(rng.integers(objects.NUM_SIGNS)), size, middle, self._light)
        self._upright(x, z - 0.1, size, middle + size / 2, painter, middle - size / 2)

    def _traffic_light(self, side: int, x: float, z: float) -> None:
        rng = self._rng
        self._pole(x, z, 0.14, 3.4, np.array([0.25, 0.27, 0.27], np.float32))
        painter = objects.traffic_light(int(rng.integers(3)), 0.5, 2.3, 3.5, self._light)
        self._upright(x, z - 0.1, 0.5, 3.5, painter, 2.3)

    def _tree(self, x: float, z: float, height: float) -> None:
        if z < 3.0:
            return
        width = height * self._rng.uniform(0.65, 0.95)
        painter = objects.tree(
            self._green(),
            width,
            height,
            self._light,
            int(self._rng.integers(2**31)),
            self._pole_width(z, 0.3),
        )
        self._upright(x, z, width, height, painter)
        self._ground.shadows.append((x, z, width * 0.4, width * 0.4, height * 0.6))

    def _clutter(self, side: int, z: float) -> None:
        """Bins and boxes: things that Cityscapes calls static and does not count."""
        rng = self._rng
        width, height = rng.uniform(0.5, 0.9), rng.uniform(0.8, 1.3)
        x = self._sign(side) * (self._ground.walks[side] - rng.uniform(0.4, 0.9))
        color = rng.uniform(0.1, 0.6, 3).astype(np.float32)
        self._upright(x, z, width, height, objects.box(color, height, self._light, LABEL["static"]))
        self._ground.shadows.append((x, z, width / 2 + 0.1, 0.4, height))

    # -- what moves

    def _traffic(self) -> None:
        rng, city = self._rng, self._city
        for side in (0, 1):
            if rng.random() < 0.75:
                z = rng.uniform(5.0, 12.0)
                while z < 55.0:
                    if rng.random() < city.traffic * 0.75:
                        self._car(
                            self._sign(side) * (self._ground.road_half - 1.05), z, away=side == 1
                        )
                    z += rng.uniform(5.4, 9.0)
            lane = self._sign(side) * self._ground.road_half * 0.33
            z = rng.uniform(11.0, 30.0)
            while z < 80.0:
                if rng.random() < city.traffic * 0.6:
                    self._car(lane + rng.uniform(-0.4, 0.4), z, away=side == 1)
                z += rng.uniform(9.0, 25.0)

    def _car(self, x: float, z: float, away: bool) -> None:
        style = objects.CarStyle.draw(self._rng)
        half, length = style.width / 2, style.length
        near_left, near_right = self._place(x - half, z), self._place(x + half, z)
        far_left, far_right = self._place(x - half, z + length), self._place(x + half, z + length)
        light = self._light
        # Of the two sides the camera sees the one that is turned to it.
        if near_left[0] > 0.0:
            painter = objects.car_side(style, light.facing(-1.0, 0.0), light, front_first=not away)
            self._canvas.wall(near_left, far_left, style.height, painter, 0.05)
        elif near_right[0] < 0.0:
            painter = objects.car_side(style, light.facing(1.0, 0.0), light, front_first=not away)
            self._canvas.wall(near_right, far_right, style.height, painter, 0.05)
        painter = objects.car_end(style, light.facing(0.0, -1.0), light, rear=away)
        self._canvas.wall(near_left, near_right, style.height, painter, 0.05)
        self._ground.shadows.append((x, z + length / 2, half + 0.15, length / 2 + 0.2, 0.7))

    def _pedestrians(self) -> None:
        rng = self._rng
        for _ in range(int(rng.poisson(5.0 * self._city.people))):
            z = float(rng.uniform(5.0, 26.0))
            if rng.random() < 0.78:
                side = int(rng.integers(2))
                x = self._sign(side) * rng.uniform(
                    self._ground.verges[side] + 0.5, self._ground.walks[side] - 0.2
                )
            else:
                x = rng.uniform(-self._ground.road_half, self._ground.road_half)
            count = 2 if rng.random() < 0.25 else 1
            for i in range(count):
                style = objects.PersonStyle.draw(rng)
                here = x + i * 0.7
                painter = objects.person(style, self._light, 1.2 * z / self._camera.focal)
                self._upright(here, z, style.width, style.height, painter)
                self._ground.shadows.append((here, z, 0.25, 0.2, style.height))

    def _hood(self) -> None:
        """The bonnet of the car that carries the camera, as in real recordings."""
        if not self._city.hood:
            return
        canvas, rng = self._canvas, self._rng
        height, width = canvas.camera.size
        column = (np.arange(width) + 0.5) / width - 0.5
        edge = height * (0.945 + 0.12 * (column * 1.6) ** 2 + rng.uniform(-0.006, 0.006))
        row = np.arange(height)[:, None] + 0.5
        inside = row > edge[None, :]
        gloss = 0.10 + 0.25 * np.exp(-(((row - edge[None, :]) / (0.02 * height)) ** 2))
        canvas.color = np.where(
            inside[..., None], gloss[..., None] * self._light.horizon, canvas.color
        )
        canvas.label = np.where(inside, np.uint8(LABEL["ego vehicle"]), canvas.label)
        canvas.depth = np.where(inside, np.float32(1.0), canvas.depth)
