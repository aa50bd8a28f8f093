"""Light, weather, sky and camera of the generated scenes."""

import dataclasses

import numpy as np

from auto_deeplab_tf.data.scenes.drawing import Camera, layered_noise, mix


@dataclasses.dataclass(frozen=True)
class Light:
    """The light of a scene; colours are float32 [3], 0..1.

    Attributes:
        sun: strength of direct sunlight, 0 under clouds and at dusk.
        sun_direction: unit vector towards the sun: right, up, forward.
        sun_color: its colour.
        ambient: light from everywhere.
        horizon: colour of the sky at the horizon, and of fog.
        zenith: colour of the sky above.
        clouds: share of the sky that is covered.
        fog: density per metre.
        wet: how much the road mirrors, 0..1.
        night: 0 by day, up to 1 at dusk: how many windows and lamps are lit.
        exposure: gain of the camera.
    """

    sun: float
    sun_direction: np.ndarray
    sun_color: np.ndarray
    ambient: np.ndarray
    horizon: np.ndarray
    zenith: np.ndarray
    clouds: float
    fog: float
    wet: float
    night: float
    exposure: float

    @classmethod
    def draw(cls, rng: np.random.Generator, bad_weather: float) -> "Light":
        """Draws a time of day and a weather."""
        kind = rng.random()
        if kind < bad_weather * 0.6:
            return cls._overcast(rng, fog=rng.uniform(0.001, 0.006), wet=rng.uniform(0.2, 0.7))
        if kind < bad_weather:
            return cls._overcast(rng, fog=rng.uniform(0.009, 0.022), wet=0.0)
        if kind < bad_weather + 0.12:
            return cls._dusk(rng)
        if kind < bad_weather + 0.3:
            return cls._overcast(rng, fog=rng.uniform(0.001, 0.004), wet=0.0)
        return cls._sunny(rng)

    @classmethod
    def _sunny(cls, rng: np.random.Generator) -> "Light":
        elevation = np.radians(rng.uniform(14.0, 62.0))
        low = float(np.clip(1.4 - elevation / 0.55, 0.0, 1.0))  # 1 in the morning and the evening
        azimuth = rng.uniform(0.0, 2.0 * np.pi)
        direction = np.array(
            [
                np.cos(elevation) * np.sin(azimuth),
                np.sin(elevation),
                np.cos(elevation) * np.cos(azimuth),
            ]
        )
        return cls(
            sun=float(rng.uniform(0.65, 0.95)),
            sun_direction=direction.astype(np.float32),
            sun_color=_color(1.0, 0.96 - 0.18 * low, 0.88 - 0.38 * low),
            ambient=_color(0.46, 0.49, 0.55) * rng.uniform(0.85, 1.1),
            horizon=_color(0.80 + 0.08 * low, 0.84 - 0.06 * low, 0.90 - 0.24 * low),
            zenith=_color(0.28, 0.47, 0.78) * rng.uniform(0.85, 1.1),
            clouds=float(rng.uniform(0.0, 0.65)),
            fog=float(rng.uniform(0.0005, 0.003)),
            wet=0.0,
            night=0.0,
            exposure=float(rng.uniform(0.9, 1.12)),
        )

    @classmethod
    def _overcast(cls, rng: np.random.Generator, fog: float, wet: float) -> "Light":
        gray = rng.uniform(0.68, 0.88)
        return cls(
            sun=0.0,
            sun_direction=_color(0.0, 1.0, 0.0),
            sun_color=_color(1.0, 1.0, 1.0),
            ambient=_color(0.80, 0.82, 0.86) * rng.uniform(0.85, 1.1),
            horizon=_color(gray, gray * 1.01, gray * 1.03),
            zenith=_color(gray * 0.86, gray * 0.89, gray * 0.94),
            clouds=1.0,
            fog=float(fog),
            wet=float(wet),
            night=0.0,
            exposure=float(rng.uniform(0.9, 1.1)),
        )

    @classmethod
    def _dusk(cls, rng: np.random.Generator) -> "Light":
        return cls(
            sun=0.0,
            sun_direction=_color(0.0, 1.0, 0.0),
            sun_color=_color(1.0, 1.0, 1.0),
            ambient=_color(0.42, 0.44, 0.56) * rng.uniform(0.85, 1.15),
            horizon=_color(0.72, 0.52, 0.46) * rng.uniform(0.85, 1.1),
            zenith=_color(0.20, 0.26, 0.44) * rng.uniform(0.85, 1.15),
            clouds=float(rng.uniform(0.1, 0.7)),
            fog=float(rng.uniform(0.001, 0.005)),
            wet=0.0,
            night=float(rng.uniform(0.4, 0.9)),
            exposure=float(rng.uniform(1.0, 1.25)),
        )

    def facing(self, x: float, z: float) -> np.ndarray:
        """Light float32 [3] on an upright wall whose normal points to (x, z)."""
        direct = max(0.0, float(self.sun_direction[0] * x + self.sun_direction[2] * z))
        return self.ambient + self.sun_color * (self.sun * direct)

    @property
    def diffuse(self) -> np.ndarray:
        """Light float32 [3] on something round."""
        return self.ambient + self.sun_color * (self.sun * 0.45)


def _color(red: float, green: float, blue: float) -> np.ndarray:
    return np.array([red, green, blue], np.float32)


def sky_color(camera: Camera, light: Light, seed: int) -> np.ndarray:
    """float32 [H, W, 3]: a gradient, clouds drawn out towards the horizon, the glow of the sun."""
    rise = np.maximum(-camera.slopes[:, None], 0.0)
    turn = camera.tangents[None, :]
    color = mix(light.horizon, light.zenith, np.clip(rise * 1.5, 0.0, 1.0) ** 0.7)
    color = np.broadcast_to(color, (*camera.size, 3))
    distance = 1.0 / (rise + 0.12)
    clouds = layered_noise(turn * distance * 0.9 + 7.0, distance * 1.3 + rise, seed, 4)
    cover = np.clip((clouds - 0.75 + 0.5 * light.clouds) * 4.0, 0.0, 1.0) * (light.clouds > 0.05)
    bright = 0.55 + 0.45 * layered_noise(turn * distance * 1.8, distance * 2.0 + 3.0, seed + 9, 3)
    cloud_color = mix(light.horizon * 0.92, light.horizon * 1.08 + 0.03, bright)
    color = mix(color, cloud_color, cover * 0.9)
    if light.sun > 0.0 and light.sun_direction[2] > 0.2:
        sun_x = light.sun_direction[0] / light.sun_direction[2]
        sun_y = light.sun_direction[1] / light.sun_direction[2]
        glow = np.exp(-((turn - sun_x) ** 2 + (rise - sun_y) ** 2) * 9.0)
        color = mix(color, light.sun_color * 1.05, 0.7 * glow)
    return color


def develop(
    color: np.ndarray, depth: np.ndarray, light: Light, rng: np.random.Generator
) -> np.ndarray:
    """Turns drawn colours into a photograph: fog, lens, exposure, white balance, sensor noise.

    Args:
        color: float32 [H, W, 3].
        depth: float32 [H, W], metres; infinite in the sky.
        light: of the scene.
        rng: source of the camera's accidents.

    Returns:
        uint8 [H, W, 3].
    """
    height, width = depth.shape
    haze = np.where(
        np.isinf(depth), 0.0, 1.0 - np.exp(-light.fog * np.where(np.isinf(depth), 0.0, depth))
    )
    color = mix(color, light.horizon, haze)
    row = (np.arange(height)[:, None] + 0.5) / height - 0.5
    column = (np.arange(width)[None, :] + 0.5) / width - 0.5
    vignette = 1.0 - rng.uniform(0.1, 0.45) * (row**2 + column**2)
    balance = 1.0 + rng.uniform(-0.05, 0.05, 3)
    color = color * (light.exposure * rng.uniform(0.92, 1.08) * vignette[..., None] * balance)
    color = np.clip(color, 0.0, None) ** rng.uniform(0.88, 1.12)
    color = _soften(color, rng.uniform(0.03, 0.12))
    strength = rng.uniform(0.006, 0.018) * (1.0 + 0.8 * light.night)
    grain = rng.standard_normal(color.shape, np.float32) * 0.7 + rng.standard_normal(
        (height, width, 1), np.float32
    )
    color = color + strength * grain * np.sqrt(np.clip(color, 0.05, 1.0))
    return np.rint(np.clip(color, 0.0, 1.0) * 255.0).astype(np.uint8)


def _soften(color: np.ndarray, share: float) -> np.ndarray:
    """The lens gives each neighbour a share of a pixel's light; nothing moves."""
    for axis in (0, 1):
        padded = np.pad(color, [(1, 1) if i == axis else (0, 0) for i in range(3)], mode="edge")
        before, after = padded[:-2], padded[2:]
        if axis == 1:
            before, after = padded[:, :-2], padded[:, 2:]
        color = (1.0 - 2.0 * share) * color + share * (before + after)
    return color
