"""The ground of the generated scenes: road, sidewalks, grass, and the shadows on them."""

import dataclasses

import numpy as np

from auto_deeplab_tf.data.scenes.drawing import Canvas, chance, hash01, layered_noise, mix, noise
from auto_deeplab_tf.data.scenes.light import Light
from auto_deeplab_tf.data.sets.cityscapes import LABEL_IDS as LABEL

_FAR = 165.0  # metres; what lies beyond is a row of pixels at most
_KERB = np.array([0.66, 0.65, 0.63], np.float32)


@dataclasses.dataclass(frozen=True)
class Ground:
    """The ground of one street; pairs are of left and right, in metres from its centre line.

    Attributes:
        road_half: half of the road's width.
        verges: where the sidewalks begin.
        walks: where they end.
        lines: where the houses stand.
        bend: the street's centre line lies at x = bend * z^2.
        lane: the camera's place on the road.
        seed: of the textures.
        houses: on each side, (first z, last z, height) of what throws long shadows.
        shadows: (x, z, half width, half length, height) of everything else that throws one.
    """

    road_half: float
    verges: tuple[float, float]
    walks: tuple[float, float]
    lines: tuple[float, float]
    bend: float
    lane: float
    seed: int
    houses: tuple[list[tuple[float, float, float]], list[tuple[float, float, float]]]
    shadows: list[tuple[float, float, float, float, float]]

    def draw(self, canvas: Canvas, light: Light) -> None:
        """Draws road, sidewalks and grass wherever nothing stands in front of them."""
        slopes = canvas.camera.slopes
        first = int(np.searchsorted(slopes, canvas.camera.height / (_FAR)))
        z = canvas.camera.height / slopes[first:, None]
        x = canvas.camera.tangents[None, :] * z - self.bend * z * z + self.lane
        z = np.broadcast_to(z, x.shape)
        free = z < canvas.depth[first:]
        side = np.abs(x)
        verge, walk, line = (
            np.where(x < 0.0, left, right) for left, right in (self.verges, self.walks, self.lines)
        )
        # Where no grass lies before the houses, the paving reaches up to them.
        end_of_paving = np.where(line < walk + 1.0, line + 0.7, walk)
        label = np.select(
            [side < self.road_half, (side >= verge) & (side < end_of_paving)],
            [LABEL["road"], LABEL["sidewalk"]],
            LABEL["terrain"],
        )
        pixel = z / canvas.camera.focal
        color = np.select(
            [(label == LABEL["road"])[..., None], (label == LABEL["sidewalk"])[..., None]],
            [self._asphalt(x, z, pixel), self._paving(x, z, side, pixel)],
            self._grass(x, z),
        )
        kerb = (side >= self.road_half) & (side < self.road_half + np.maximum(0.18, 0.8 * pixel))
        color = mix(color, _KERB, 0.8 * kerb)
        color = color * self._sunlight(x, z, light)
        if light.wet > 0.0:
            sheen = (
                light.wet
                * (0.35 + 0.3 * noise(x * 0.4, z * 0.15, self.seed + 5))
                * (label == LABEL["road"])
            )
            color = mix(color, light.horizon, sheen)
        window = slice(first, None)
        canvas.color[window] = np.where(free[..., None], color, canvas.color[window])
        canvas.label[window] = np.where(free, label, canvas.label[window])
        canvas.depth[window] = np.where(free, z, canvas.depth[window])

    def _asphalt(self, x: np.ndarray, z: np.ndarray, pixel: np.ndarray) -> np.ndarray:
        seed = self.seed
        tone = 0.30 + 0.10 * chance(0, seed)
        grain = (noise(x * 9.0, z * 9.0, seed) - 0.5) * np.minimum(1.0, 0.08 / pixel) * 0.16
        patches = (layered_noise(x * 0.5, z * 0.25, seed + 1, 3) - 0.5) * 0.22
        wear = 0.03 * np.cos((np.abs(x) - self.road_half * 0.33) * 3.6)  # the tracks of the wheels
        cracks = np.abs(noise(x * 0.8, z * 0.5, seed + 2) - 0.5) < 0.012
        value = tone * (1.0 + grain + patches) + wear - 0.07 * cracks
        color = value[..., None] * np.array([1.0, 1.0, 1.03], np.float32)
        # Marks: a broken centre line, side lines, and in some streets a crossing.
        half = np.maximum(0.075, 0.6 * pixel)
        period = 6.0 + 3.0 * chance(1, seed)
        marks = (np.abs(x) < half) & (np.mod(z, period) < 0.5 * period)
        if chance(2, seed) < 0.6:
            marks |= np.abs(np.abs(x) - (self.road_half - 2.15)) < half
        if chance(3, seed) < 0.45:
            start = 7.0 + 12.0 * chance(4, seed)
            marks |= (z > start) & (z < start + 3.0) & (np.mod(x, 1.0) < 0.5)
        worn = 0.55 + 0.45 * noise(x * 3.0, z * 2.0, seed + 3)
        return mix(color, np.array([0.82, 0.82, 0.80], np.float32), marks * worn)

    def _paving(
        self, x: np.ndarray, z: np.ndarray, side: np.ndarray, pixel: np.ndarray
    ) -> np.ndarray:
        seed = self.seed + 10
        warm = chance(0, seed)
        base = mix(
            np.array([0.50, 0.49, 0.48], np.float32),
            np.array([0.60, 0.51, 0.45], np.float32),
            np.asarray(warm),
        )
        slab = 0.6 + 0.6 * chance(1, seed)
        tiles = hash01(np.floor(side / slab), np.floor(z / slab), seed) - 0.5
        joints = (np.mod(side, slab) < 0.05) | (np.mod(z, slab) < 0.05)
        detail = np.minimum(1.0, 0.25 * slab / pixel)
        value = (
            1.0
            + (0.16 * tiles - 0.16 * joints) * detail
            + 0.14 * (noise(x * 0.9, z * 0.5, seed + 1) - 0.5)
        )
        return base * value[..., None]

    def _grass(self, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        seed = self.seed + 20
        dry = layered_noise(x * 0.25, z * 0.15, seed, 3)
        blades = layered_noise(x * 6.0, z * 2.0, seed + 5, 2) - 0.5
        color = mix(
            np.array([0.33, 0.46, 0.17], np.float32),
            np.array([0.56, 0.50, 0.29], np.float32),
            0.8 * dry,
        )
        return color * (1.0 + 0.45 * blades)[..., None]

    def _sunlight(self, x: np.ndarray, z: np.ndarray, light: Light) -> np.ndarray:
        """Light on the ground [h, w, 3]: the sun's where nothing is in its way."""
        shade = np.zeros(x.shape, np.float32)
        occlusion = np.zeros(x.shape, np.float32)
        towards_x, towards_z = light.sun_direction[0], light.sun_direction[2]
        climb = light.sun_direction[1]
        # A ray to the sun leaves the street on the sun's side, and meets the row of houses there.
        side, sign = (0, -1.0) if towards_x < 0.0 else (1, 1.0)
        if light.sun > 0.0 and abs(towards_x) > 0.05:
            run = np.maximum((sign * (self.lines[side] + 0.3) - x) / towards_x, 0.0)
            height, hit = run * climb, z + run * towards_z
            for first, last, top in self.houses[side]:
                shade = np.maximum(shade, (hit > first) & (hit < last) & (height < top))
        for shadow_x, shadow_z, half_x, half_z, top in self.shadows:
            near = ((x - shadow_x) / (half_x * 1.15)) ** 2 + ((z - shadow_z) / (half_z * 1.15)) ** 2
            occlusion = np.maximum(occlusion, np.clip(1.6 - near, 0.0, 1.0) * min(1.0, 1.2 / top))
            if light.sun > 0.0:
                reach = min(top / max(climb, 0.15), 9.0)
                for part in (0.35, 0.7, 1.0):
                    dx = x - (shadow_x - towards_x * reach * part)
                    dz = z - (shadow_z - towards_z * reach * part)
                    shade = np.maximum(
                        shade, (dx / half_x) ** 2 + (dz / max(half_z, 0.35 * reach)) ** 2 < 1.0
                    )
        direct = light.sun_color * (light.sun * climb * (1.0 - 0.85 * shade))[..., None]
        return (light.ambient + direct) * (1.0 - 0.55 * occlusion)[..., None]
