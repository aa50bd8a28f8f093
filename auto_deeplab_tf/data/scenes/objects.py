"""What stands in the generated scenes: random styles, and painters in a wall's coordinates."""

import dataclasses

import numpy as np

from auto_deeplab_tf.data.scenes.drawing import (
    CLEAR,
    Painter,
    Surface,
    hash01,
    layered_noise,
    mix,
    noise,
)
from auto_deeplab_tf.data.scenes.light import Light
from auto_deeplab_tf.data.sets.cityscapes import LABEL_IDS as LABEL

NUM_SIGNS = 6
_WARM = np.array([1.0, 0.82, 0.48], np.float32)


def _rgb(red: float, green: float, blue: float) -> np.ndarray:
    return np.array([red, green, blue], np.float32)


# -- houses


@dataclasses.dataclass(frozen=True)
class FacadeStyle:
    """A house front: `height` of the wall, `top` with the roof; window grid in metres."""

    height: float
    top: float
    color: np.ndarray
    roof: np.ndarray
    glass: np.ndarray
    frame: np.ndarray
    spacing: float
    window: tuple[float, float]
    floor: float
    ground_floor: float
    shops: bool
    bricks: bool
    awning: np.ndarray
    seed: int

    @classmethod
    def draw(
        cls, rng: np.random.Generator, colors, height: float, pitched_roofs: float
    ) -> "FacadeStyle":
        """Draws a random style."""
        color = np.array(colors[rng.integers(len(colors))], np.float32)
        pitched = rng.random() < pitched_roofs
        return cls(
            height=height,
            top=height + (rng.uniform(1.2, 2.4) if pitched else rng.uniform(0.0, 0.3)),
            color=np.clip(
                color * rng.uniform(0.8, 1.2) + rng.uniform(-0.04, 0.04, 3), 0.1, 0.95
            ).astype(np.float32),
            roof=_rgb(0.42, 0.22, 0.17) * rng.uniform(0.7, 1.2)
            if rng.random() < 0.6
            else _rgb(0.26, 0.26, 0.29),
            glass=_rgb(0.15, 0.19, 0.24) * rng.uniform(0.7, 1.4),
            frame=_rgb(0.85, 0.84, 0.80) * rng.uniform(0.45, 1.05),
            spacing=rng.uniform(1.9, 3.4),
            window=(rng.uniform(0.42, 0.75), rng.uniform(0.45, 0.68)),
            floor=3.0,
            ground_floor=rng.uniform(3.0, 3.6),
            shops=bool(rng.random() < 0.4),
            bricks=bool(rng.random() < 0.5),
            awning=rng.uniform(0.15, 0.8, 3).astype(np.float32),
            seed=int(rng.integers(2**31)),
        )


def facade(style: FacadeStyle, lit: np.ndarray, light: Light) -> Painter:
    """A house front with windows, a ground floor and a roof."""

    def paint(surface: Surface):
        along, up, pixel = surface
        stain = layered_noise(along * 0.35, up * 0.5, style.seed, 3) - 0.5
        value = 1.0 + 0.22 * stain - 0.10 * np.clip(1.0 - up / 1.2, 0.0, 1.0)
        if style.bricks:
            course = np.floor(up / 0.25)
            brick = (
                hash01(np.floor((along + 0.3 * np.mod(course, 2)) / 0.6), course, style.seed + 4)
                - 0.5
            )
            value = value + 0.22 * brick * np.minimum(1.0, 0.2 / pixel)
        color = style.color * value[..., None]
        column, row = (
            np.floor(along / style.spacing),
            np.floor((up - style.ground_floor) / style.floor),
        )
        across = along / style.spacing - column - 0.5
        upward = (up - style.ground_floor) / style.floor - row - 0.48
        half_width, half_height = style.window[0] / 2, style.window[1] / 2
        storeys = (row >= 0) & (up < style.height - 0.35)
        frame = (
            storeys & (np.abs(across) < half_width + 0.06) & (np.abs(upward) < half_height + 0.05)
        )
        glass = storeys & (np.abs(across) < half_width) & (np.abs(upward) < half_height)
        glass &= np.abs(across) > 0.015
        if style.shops:
            pane = np.mod(along, 4.2)
            glass |= (
                (up > 0.5) & (up < 2.5) & (pane > 0.35) & (pane < 3.9) & (np.abs(pane - 2.9) > 0.06)
            )
            color = mix(color, style.awning, ((up > 2.6) & (up < style.ground_floor - 0.1)) * 0.85)
        else:
            door = np.mod(column, 3) == 1
            color = mix(color, style.awning * 0.7, door & (np.abs(across) < 0.22) & (up < 2.2))
            low = ~door & (np.abs(across) < half_width) & (up > 0.95) & (up < 2.3)
            frame |= ~door & (np.abs(across) < half_width + 0.06) & (up > 0.85) & (up < 2.4)
            glass |= low
        detail = np.clip(0.5 * style.spacing / pixel - 0.6, 0.25, 1.0)
        color = mix(color, style.frame, frame * detail)
        color = color * lit
        pane_seed = hash01(column, row + 50.0, style.seed + 1)
        reflected = mix(
            style.glass * light.diffuse,
            light.horizon * 0.8,
            0.55 * pane_seed**2 + 0.1 * (upward > 0),
        )
        on = pane_seed < 0.6 * light.night
        reflected = np.where(on[..., None], _WARM * (0.6 + 0.4 * pane_seed[..., None]), reflected)
        color = mix(color, reflected, glass * detail)
        ledge = np.abs(up - style.height + 0.15) < 0.17
        color = mix(color, style.frame * lit * 0.8, ledge)
        roof = up > style.height
        tiles = 1.0 + 0.25 * (noise(along * 2.0, up * 6.0, style.seed + 2) - 0.5)
        color = np.where(roof[..., None], style.roof * tiles[..., None] * light.diffuse, color)
        # Chimneys and dormers break the line of the roof.
        rise = hash01(np.floor(along / 2.2), np.zeros_like(along), style.seed + 3)
        clear = (up > style.top - 0.35) & (rise < 0.6)
        return color, np.where(clear, CLEAR, LABEL["building"])

    return paint


@dataclasses.dataclass(frozen=True)
class FenceStyle:
    """Pickets, bars or boards between posts."""

    height: float
    color: np.ndarray
    kind: int
    seed: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "FenceStyle":
        """Draws a random style."""
        colors = ((0.50, 0.36, 0.24), (0.72, 0.71, 0.68), (0.24, 0.26, 0.25), (0.40, 0.30, 0.24))
        return cls(
            height=rng.uniform(1.1, 1.7),
            color=np.array(colors[rng.integers(4)], np.float32) * rng.uniform(0.8, 1.2),
            kind=int(rng.integers(3)),
            seed=int(rng.integers(2**31)),
        )


def fence(style: FenceStyle, lit: np.ndarray) -> Painter:
    """All of it is fence, the dark between the pickets too, as in hand-drawn labels."""

    def paint(surface: Surface):
        along, up, pixel = surface
        period = (0.28, 0.22, 0.9)[style.kind]
        solid = (0.6, 0.35, 0.95)[style.kind]
        phase = np.mod(along, period) / period
        board = phase < solid
        rails = (np.abs(up - 0.25) < 0.06) | (np.abs(up - style.height + 0.2) < 0.07)
        posts = np.mod(along, 2.4) < 0.16
        detail = np.clip(period / pixel - 0.8, 0.0, 1.0)
        tone = hash01(np.floor(along / period), np.zeros_like(along), style.seed)
        filled = np.where(rails | posts, 1.0, detail * board + (1.0 - detail) * solid)
        value = (0.35 + 0.65 * filled) * (0.85 + 0.3 * tone * detail) + 0.06 * posts
        value = value * (1.0 + 0.3 * (noise(along * 3.0, up * 5.0, style.seed) - 0.5))
        if style.kind == 2:
            value = value * (1.0 - 0.25 * (np.mod(up, 0.3) < 0.05))
        return style.color * value[..., None] * lit, LABEL["fence"]

    return paint


# -- greenery


def _leaves(
    surface: Surface, green: np.ndarray, light: Light, seed: int, shade: np.ndarray
) -> np.ndarray:
    """Foliage: clumps of leaves, dark inside; `shade` is 0 at the bottom and 1 at the top."""
    along, up, _ = surface
    clumps = layered_noise(along * 1.7, up * 1.7, seed, 3)
    fine = noise(along * 9.0, up * 9.0, seed + 7) - 0.5
    value = 0.35 + 0.75 * clumps * (0.55 + 0.6 * shade) + 0.22 * fine
    tint = mix(green * _rgb(0.85, 0.95, 0.9), green * _rgb(1.25, 1.1, 0.9), clumps)
    return tint * value[..., None] * light.diffuse


def tree(
    green: np.ndarray, width: float, height: float, light: Light, seed: int, trunk_width: float
) -> Painter:
    """A trunk and a ragged crown."""

    def paint(surface: Surface):
        along, up, pixel = surface
        x = along - width / 2
        base = height * 0.32
        middle, half = (height + base) / 2, (height - base) / 2
        angle = np.arctan2(up - middle, x)
        ragged = noise(angle * 2.2 + 20.0, np.zeros_like(angle), seed) - 0.5
        radius = np.hypot(x / (width / 2), (up - middle) / half)
        edge = (
            radius
            + 0.28 * ragged
            + 0.55 * (layered_noise(along * 2.0, up * 2.0, seed + 3, 2) - 0.5)
        )
        crown = edge < 0.82
        trunk = (np.abs(x) < trunk_width / 2) & (up < middle)
        shade = np.clip((up - base) / (height - base), 0.0, 1.0)
        color = _leaves(surface, green, light, seed + 11, shade)
        bark = (
            _rgb(0.30, 0.24, 0.19) * (0.7 + 0.5 * noise(along * 8.0, up * 3.0, seed + 5))[..., None]
        )
        color = np.where(crown[..., None], color, bark * light.diffuse)
        return color, np.where(crown | trunk, LABEL["vegetation"], CLEAR)

    return paint


def bush(green: np.ndarray, width: float, height: float, light: Light, seed: int) -> Painter:
    """A round bush."""

    def paint(surface: Surface):
        along, up, _ = surface
        radius = np.hypot((along - width / 2) / (width / 2), up / height)
        inside = radius + 0.4 * (layered_noise(along * 2.5, up * 2.5, seed, 2) - 0.5) < 0.9
        color = _leaves(surface, green, light, seed + 1, np.clip(up / height, 0.0, 1.0))
        return color, np.where(inside, LABEL["vegetation"], CLEAR)

    return paint


def hedge(green: np.ndarray, height: float, light: Light, seed: int) -> Painter:
    """A hedge or a wood with an uneven top."""

    def paint(surface: Surface):
        along, up, _ = surface
        top = height * (
            0.72 + 0.28 * layered_noise(along * 2.0 / height, np.zeros_like(along), seed, 3)
        )
        color = _leaves(surface, green, light, seed + 1, np.clip(up / height, 0.0, 1.0))
        return color, np.where(up < top, LABEL["vegetation"], CLEAR)

    return paint


# -- street furniture


def pole(color: np.ndarray, width: float, light: Light) -> Painter:
    """A round pole: bright on one side."""

    def paint(surface: Surface):
        along, up, _ = surface
        turn = np.clip(along / width, 0.0, 1.0)
        value = 0.65 + 0.6 * turn * (1.0 - turn) * 4.0 * (0.6 if light.sun == 0.0 else 1.0)
        return color * value[..., None] * light.ambient * 1.3, LABEL["pole"]

    return paint


def lamp_arm(color: np.ndarray, light: Light, lamp_first: bool) -> Painter:
    """The arm of a street lamp, with the lamp at its free end."""

    def paint(surface: Surface):
        along, _, _ = surface
        from_lamp = along if lamp_first else along.max() - along
        lamp = from_lamp < 0.5
        glow = mix(
            color * light.ambient * 1.2,
            _WARM * (0.5 + 0.5 * light.night),
            lamp * (0.25 + 0.75 * (light.night > 0)),
        )
        return glow, LABEL["pole"]

    return paint


def sign(kind: int, size: float, middle: float, light: Light) -> Painter:
    """A traffic sign: ring, triangle, blue disc, square, stop, or direction board."""
    red, white, blue = _rgb(0.78, 0.10, 0.10), _rgb(0.92, 0.92, 0.90), _rgb(0.10, 0.28, 0.70)
    yellow, black = _rgb(0.95, 0.78, 0.12), _rgb(0.10, 0.10, 0.10)

    def paint(surface: Surface):
        along, up, _ = surface
        x, y = (along - size / 2) / (size / 2), (up - middle) / (size / 2)
        radius = np.hypot(x, y)
        if kind == 0:
            inside, color = radius < 1.0, mix(red, white, radius < 0.68)
            color = mix(color, black, (np.abs(y) < 0.3) & (np.abs(x) < 0.35))
        elif kind == 1:
            slant = np.abs(x) * 1.0 + (y + 1.0) * 0.5
            inside, color = slant < 1.0, mix(red, white, (slant < 0.72) & (y > -0.7))
            color = mix(color, black, (np.abs(x) < 0.12) & (y > -0.5) & (y < 0.3))
        elif kind == 2:
            inside, color = radius < 1.0, mix(blue, white, (np.abs(x) < 0.2) & (np.abs(y) < 0.6))
        elif kind == 3:
            inside = np.maximum(np.abs(x), np.abs(y)) < 0.95
            color = mix(
                blue, white, (np.abs(x + 0.1) < 0.45) & (np.abs(y) < 0.6) & (np.abs(x) + y > -0.2)
            )
        elif kind == 4:
            inside = (
                np.maximum(np.maximum(np.abs(x), np.abs(y)), (np.abs(x) + np.abs(y)) * 0.72) < 0.98
            )
            color = mix(red, white, (np.abs(y) < 0.22) & (np.abs(x) < 0.7))
        else:
            inside = np.maximum(np.abs(x), np.abs(y) * 1.35) < 1.0
            color = mix(yellow, black, (np.abs(y) < 0.14) & (np.abs(x) < 0.75))
        return color * (light.diffuse * 0.9 + 0.1), np.where(inside, LABEL["traffic sign"], CLEAR)

    return paint


def traffic_light(on: int, width: float, bottom: float, top: float, light: Light) -> Painter:
    """A dark box with three lamps, one of them lit."""
    colors = (_rgb(0.1, 0.95, 0.45), _rgb(1.0, 0.75, 0.1), _rgb(1.0, 0.15, 0.1))

    def paint(surface: Surface):
        along, up, _ = surface
        color = np.broadcast_to(_rgb(0.09, 0.10, 0.10) * (0.5 + light.diffuse), (*along.shape, 3))
        for i, lamp in enumerate(colors):
            middle = bottom + (top - bottom) * (i + 0.5) / 3
            inside = np.hypot(along - width / 2, up - middle) < 0.38 * width
            color = mix(color, lamp if i == on else lamp * 0.18, inside)
        return color, LABEL["traffic light"]

    return paint


def box(color: np.ndarray, height: float, light: Light, label: int) -> Painter:
    """A bin or a cabinet."""

    def paint(surface: Surface):
        along, up, _ = surface
        value = 0.8 + 0.2 * (up / height) - 0.3 * (np.abs(up - 0.85 * height) < 0.05)
        return color * value[..., None] * light.diffuse + 0.0 * along[..., None], label

    return paint


# -- cars


@dataclasses.dataclass(frozen=True)
class CarStyle:
    """Size in metres, paint and outline: lengths of bonnet and boot, height of the body (belt)."""

    width: float
    length: float
    height: float
    belt: float
    bonnet: float
    boot: float
    color: np.ndarray
    lights_on: bool

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "CarStyle":
        """Draws a random style."""
        colors = (
            (0.80, 0.80, 0.80), (0.12, 0.12, 0.13), (0.45, 0.46, 0.48), (0.62, 0.10, 0.10), (0.12,
            0.22, 0.48), (0.88, 0.88, 0.86), (0.25, 0.27, 0.30), (0.20, 0.36, 0.26), (0.70, 0.62,
            0.45), (0.85, 0.55, 0.15),
        )  # fmt: skip
        van = rng.random() < 0.25
        return cls(
            width=rng.uniform(1.75, 1.95),
            length=rng.uniform(3.9, 4.8),
            height=rng.uniform(1.75, 2.1) if van else rng.uniform(1.42, 1.6),
            belt=rng.uniform(0.88, 1.0),
            bonnet=rng.uniform(0.7, 0.9) if van else rng.uniform(1.0, 1.3),
            boot=0.1 if van or rng.random() < 0.5 else rng.uniform(0.5, 0.8),
            color=np.clip(
                np.array(colors[rng.integers(10)]) * rng.uniform(0.85, 1.15), 0.05, 1.0
            ).astype(np.float32),
            lights_on=bool(rng.random() < 0.4),
        )


def car_side(style: CarStyle, lit: np.ndarray, light: Light, front_first: bool) -> Painter:
    """The side of a car; `along` starts at the end that is nearer to the camera."""

    def paint(surface: Surface):
        _, up, _ = surface
        along = (
            surface.along if front_first else style.length - surface.along
        )  # from the front bumper
        rise = np.clip((up - style.belt) / (style.height - style.belt), 0.0, 1.0)
        front, back = style.bonnet + 0.55 * rise, style.length - style.boot - 0.3 * rise
        cabin = (up >= style.belt) & (along > front) & (along < back)
        nose = np.minimum(along, style.length - along)
        body = (up < style.belt - 0.12 * np.clip(1.0 - along / style.bonnet, 0.0, 1.0)) & (
            nose > 0.06
        )
        wheel = np.zeros(up.shape, bool)
        hub = np.zeros(up.shape, bool)
        for centre in (0.8, style.length - 0.8):
            radius = np.hypot(along - centre, up - 0.33)
            wheel |= radius < 0.36
            hub |= radius < 0.2
        body &= (up > 0.22) | wheel
        value = 0.72 + 0.4 * np.clip(up / style.belt, 0.0, 1.0) - 0.12 * (np.abs(up - 0.6) < 0.03)
        color = style.color * value[..., None] * lit + 0.05 * light.horizon * (up > 0.7)[..., None]
        pillar = np.abs(along - (front + back) / 2) < 0.05
        pane = (
            cabin
            & (rise > 0.12)
            & (rise < 0.88)
            & (along > front + 0.1)
            & (along < back - 0.12)
            & ~pillar
        )
        glass = mix(_rgb(0.10, 0.12, 0.15), light.horizon * 0.75, 0.25 + 0.3 * rise)
        color = np.where(pane[..., None], glass, color)
        color = mix(color, _rgb(0.05, 0.05, 0.06), wheel)
        color = mix(color, _rgb(0.45, 0.46, 0.48) * light.diffuse, hub)
        return color, np.where(body | cabin | wheel, LABEL["car"], CLEAR)

    return paint


def car_end(style: CarStyle, lit: np.ndarray, light: Light, rear: bool) -> Painter:
    """Front or rear of a car."""

    def paint(surface: Surface):
        along, up, _ = surface
        x = np.abs(along - style.width / 2) / (style.width / 2)
        rise = np.clip((up - style.belt) / (style.height - style.belt), 0.0, 1.0)
        cabin = (up >= style.belt) & (x < 0.93 - 0.22 * rise)
        body = (up < style.belt) & (x < 0.99) & (up > 0.2)
        tyre = (up <= 0.32) & (x > 0.66) & (x < 0.95)
        value = 0.7 + 0.35 * np.clip(up / style.belt, 0.0, 1.0)
        color = style.color * value[..., None] * lit
        pane = cabin & (rise > 0.1) & (rise < 0.85) & (x < 0.82 - 0.2 * rise)
        color = np.where(
            pane[..., None],
            mix(_rgb(0.08, 0.10, 0.12), light.horizon * 0.7, 0.2 + 0.35 * rise),
            color,
        )
        bumper = (up < 0.45) & (up > 0.2)
        color = mix(color, _rgb(0.15, 0.15, 0.16) * light.diffuse, bumper * 0.7)
        plate = (np.abs(up - 0.52) < 0.07) & (x < 0.27)
        color = mix(color, _rgb(0.85, 0.85, 0.78) * light.diffuse, plate)
        lamps = (np.abs(up - 0.74) < 0.1) & (x > 0.68) & (x < 0.94)
        bright = style.lights_on or light.night > 0.0
        lamp = (
            _rgb(0.75, 0.08, 0.06) * (1.3 if bright else 0.8)
            if rear
            else _rgb(0.9, 0.9, 0.85) * (1.15 if bright else 0.8)
        )
        color = mix(color, lamp, lamps)
        grille = (not rear) & (np.abs(up - 0.66) < 0.1) & (x < 0.5)
        color = mix(color, _rgb(0.08, 0.08, 0.09), grille * 0.8)
        color = mix(color, _rgb(0.04, 0.04, 0.05), tyre)
        return color, np.where(body | cabin | tyre, LABEL["car"], CLEAR)

    return paint


# -- people


@dataclasses.dataclass(frozen=True)
class PersonStyle:
    """Size in metres, clothes, and the step: how far the feet are apart."""

    height: float
    width: float
    coat: np.ndarray
    trousers: np.ndarray
    skin: np.ndarray
    hair: np.ndarray
    step: float
    bag: bool

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "PersonStyle":
        """Draws a random style."""
        skin = _rgb(0.86, 0.66, 0.53) * rng.uniform(0.45, 1.05)
        return cls(
            height=rng.uniform(1.55, 1.92),
            width=0.8,
            coat=rng.uniform(0.05, 0.85, 3).astype(np.float32),
            trousers=rng.uniform(0.05, 0.4, 3).astype(np.float32),
            skin=skin.astype(np.float32),
            hair=_rgb(0.2, 0.14, 0.09) * rng.uniform(0.3, 2.5),
            step=rng.uniform(0.05, 0.28),
            bag=bool(rng.random() < 0.3),
        )


def person(style: PersonStyle, light: Light, thinnest: float) -> Painter:
    """Head, trunk, arms and legs; no leg is thinner than `thinnest` metres."""

    def paint(surface: Surface):
        along, up, _ = surface
        x, y = along - style.width / 2, up / style.height
        leg = max(0.085, thinnest / 2)
        spread = style.step * np.clip(1.0 - y / 0.48, 0.0, 1.0)
        legs = (y < 0.5) & ((np.abs(x - spread) < leg) | (np.abs(x + spread) < leg))
        trunk = (y >= 0.46) & (y < 0.84) & (np.abs(x) < 0.19 + 0.05 * np.sin((y - 0.46) * 8.0))
        arms = (y > 0.48) & (y < 0.82) & (np.abs(np.abs(x) - 0.22 - 0.25 * (0.82 - y)) < 0.06)
        head = np.hypot(x, (y - 0.925) * style.height) < 0.135
        bag = style.bag & (np.abs(x - 0.27) < 0.1) & (y > 0.4) & (y < 0.55)
        shade = 0.75 + 0.5 * np.clip(0.5 + x, 0.0, 1.0)
        color = np.where((y < 0.47)[..., None], style.trousers, style.coat)
        color = mix(color, style.skin, head & (y < 0.95))
        color = mix(color, style.hair, head & (y >= 0.95))
        color = mix(color, style.trousers * 0.6, bag)
        color = mix(color, _rgb(0.06, 0.05, 0.05), y < 0.04)
        color = color * shade[..., None] * light.diffuse
        return color, np.where(legs | trunk | arms | head | bag, LABEL["person"], CLEAR)

    return paint
