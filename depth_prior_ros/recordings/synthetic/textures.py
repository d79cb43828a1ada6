"""The textures of a world: procedural patterns and, where given, patches of real frames.

What real frames lend to the rendered ones: patches for surfaces, and their grey levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

SIZE = 256  # side of a texture layer, pixels
_REAL_LAYERS = 30
_REAL_GROUND_LAYERS = 6


def opaque(rgb: np.ndarray) -> np.ndarray:
    """A layer (SIZE, SIZE, 4) uint8 without holes from colours in [0, 1]."""
    out = np.empty((SIZE, SIZE, 4), np.uint8)
    out[..., :3] = np.clip(rgb * 255.0, 0, 255)
    out[..., 3] = 255
    return out


def is_green(patch: np.ndarray) -> bool:
    """Whether a patch is foliage: greenish and busy."""
    mean = patch[..., :3].reshape(-1, 3).mean(0)
    fine = np.abs(np.diff(patch[..., 1].astype(np.float32), axis=0)).mean()
    return bool(mean[1] > 1.04 * mean[2] and mean[1] >= 0.97 * mean[0] and fine > 5.0)


def real_patches(
    rng: np.random.Generator, images: Sequence[Path], ground: bool = False
) -> list[np.ndarray]:
    """Square patches from the sides (or the road) of real frames, mirrored so that they tile."""
    patches: list[np.ndarray] = []
    attempts = 0
    wanted = _REAL_GROUND_LAYERS if ground else _REAL_LAYERS
    while images and len(patches) < wanted and attempts < 4 * wanted:
        attempts += 1
        frame = cv2.imread(str(images[int(rng.integers(len(images)))]), cv2.IMREAD_COLOR)
        if frame is None:
            continue
        height, width = frame.shape[:2]
        side = int(rng.uniform(0.2, 0.55) * height)
        x = int(rng.uniform(0, 0.3) * width)
        x = x if rng.random() < 0.5 else width - side - x
        y = int(rng.uniform(0.05, 0.6) * height)
        if ground:
            side = int(rng.uniform(0.15, 0.25) * height)
            x, y = int(rng.uniform(0.25, 0.7) * width), height - side - 1
        crop = cv2.cvtColor(frame[y : y + side, x : x + side], cv2.COLOR_BGR2RGB)
        # Neither sky nor black shadow, nor a stretch that is half of each.
        if not 15 < crop.mean() < 190 or (crop.min(-1) > 235).mean() > 0.15:
            continue
        crop = cv2.resize(crop, (SIZE // 2, SIZE // 2), interpolation=cv2.INTER_AREA)
        crop = crop.astype(np.float32) / 255.0
        crop *= (0.42 / crop.mean()) ** (1.0 if ground else 0.7)
        half = np.concatenate([crop, crop[:, ::-1]], 1)
        patches.append(opaque(np.concatenate([half, half[::-1]], 0)))
    return patches


def tone_quantiles(
    rng: np.random.Generator, images: Sequence[Path], count: int, knots: int = 33
) -> np.ndarray:
    """Grey-level quantiles per channel of random real frames, (up to count, knots, 3) float32."""
    share = np.linspace(0, 1, knots)
    found = []
    for _ in range(count if images else 0):
        frame = cv2.imread(str(images[int(rng.integers(len(images)))]), cv2.IMREAD_COLOR)
        if frame is not None:
            pixels = frame[::4, ::4, ::-1].reshape(-1, 3)
            found.append(np.quantile(pixels, share, axis=0))
    return np.asarray(found, np.float32).reshape(-1, knots, 3)


def noise(
    rng: np.random.Generator, coarsest: int = 4, octaves: int = 6, fall: float = 0.6
) -> np.ndarray:
    """Tileable value noise (SIZE, SIZE) float32 in about [-1, 1]."""
    total = np.zeros((SIZE, SIZE), np.float32)
    amplitude, norm = 1.0, 0.0
    for octave in range(octaves):
        cells = coarsest * 2**octave
        if cells > SIZE:
            break
        grid = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
        grid = np.pad(grid, 2, mode="wrap")
        step = SIZE // cells
        big = cv2.resize(grid, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
        total += amplitude * big[2 * step : 2 * step + SIZE, 2 * step : 2 * step + SIZE]
        norm += amplitude
        amplitude *= fall
    return total * (1.6 / norm)


def _rgb(value: np.ndarray, colour: Sequence[float] | np.ndarray) -> np.ndarray:
    return value[..., None] * np.asarray(colour, np.float32)


def _wall_colour(rng: np.random.Generator) -> np.ndarray:
    base = rng.uniform(0.35, 0.85)
    warm = rng.uniform(-0.05, 0.25)
    return base * np.array(
        [1.0, 1.0 - 0.4 * warm, 1.0 - 1.2 * max(warm, 0.0) - rng.uniform(0, 0.1)]
    )


def asphalt(rng: np.random.Generator) -> np.ndarray:
    """Grey, grainy, with darker seams and stains."""
    value = 0.42 + 0.05 * noise(rng, 2, 4) + rng.uniform(0.02, 0.06) * noise(rng, 64, 3, 0.9)
    crack = np.abs(noise(rng, 4, 4, 0.55))
    value *= 1.0 - rng.uniform(0.0, 0.5) * np.clip(1.0 - crack / 0.02, 0, 1)
    return opaque(_rgb(value, [1.0, 1.0, rng.uniform(0.95, 1.06)]))


def _grid_lines(across: int, down: int, shift: bool, gap: float) -> tuple[np.ndarray, np.ndarray]:
    """Mortar mask (1 = joint) and the number of the stone at each pixel."""
    x = np.arange(SIZE)[np.newaxis] / SIZE
    y = x.T
    row = np.floor(y * down)
    u = x * across + (0.5 * (row % 2) if shift else 0.0)
    fx, fy = u % 1.0, (y * down) % 1.0
    joint = (np.minimum(fx, 1 - fx) < gap) | (np.minimum(fy, 1 - fy) < gap * down / across)
    stone = (row * across + np.floor(u) % across).astype(int)
    return joint, stone


def masonry(rng: np.random.Generator) -> np.ndarray:
    """Brick, stone blocks or paving slabs."""
    across = int(rng.choice([4, 6, 8, 12]))
    down = across * int(rng.choice([1, 2]))
    joint, stone = _grid_lines(across, down, bool(rng.random() < 0.7), rng.uniform(0.03, 0.08))
    tone = rng.uniform(1 - rng.uniform(0.1, 0.4), 1.0, stone.max() + 1)[stone]
    colour = _wall_colour(rng)
    if rng.random() < 0.35:
        colour = np.array([0.55, 0.3, 0.22]) * rng.uniform(0.7, 1.2)
    value = tone * (1.0 + 0.08 * noise(rng, 8, 5, 0.8))
    value = np.where(joint, rng.uniform(0.6, 1.2), value)
    return opaque(_rgb(value, colour))


def plaster(rng: np.random.Generator) -> np.ndarray:
    """A plain wall with stains."""
    value = 1.0 + 0.1 * noise(rng, 2, 5) + 0.03 * noise(rng, 64, 3, 0.9)
    return opaque(_rgb(value, _wall_colour(rng)))


def paving(rng: np.random.Generator) -> np.ndarray:
    """Slabs or cobbles of a pavement."""
    across = int(rng.choice([3, 4, 8, 16]))
    joint, stone = _grid_lines(across, across, bool(rng.random() < 0.5), rng.uniform(0.02, 0.06))
    tone = rng.uniform(0.85, 1.0, stone.max() + 1)[stone] * (1 + 0.07 * noise(rng, 8, 5, 0.8))
    value = np.where(joint, 0.7 * tone, tone) * rng.uniform(0.45, 0.65)
    return opaque(_rgb(value, [1.0, rng.uniform(0.94, 1.0), rng.uniform(0.88, 1.0)]))


def grass(rng: np.random.Generator) -> np.ndarray:
    """Lawn, meadow or stubble."""
    value = 0.38 + 0.1 * noise(rng, 4, 5, 0.8) + 0.1 * noise(rng, 64, 3, 0.9)
    dry = np.clip(0.5 * noise(rng, 2, 4) + rng.uniform(-0.1, 0.9), 0, 1)[..., None]
    green = np.array([0.75, 1.0, 0.35]) * rng.uniform(0.8, 1.1)
    straw = np.array([1.25, 1.1, 0.6])
    return opaque(value[..., None] * (green * (1 - dry) + straw * dry))


def soil(rng: np.random.Generator) -> np.ndarray:
    """Ploughed earth, gravel, dead leaves."""
    value = 0.4 + 0.1 * noise(rng, 4, 5, 0.8) + 0.12 * noise(rng, 64, 3, 0.9)
    return opaque(_rgb(value, np.array([1.0, 0.85, 0.65]) * rng.uniform(0.8, 1.2)))


def roof(rng: np.random.Generator) -> np.ndarray:
    """Rows of tiles."""
    joint, stone = _grid_lines(16, 12, True, 0.06)
    tone = rng.uniform(0.8, 1.0, stone.max() + 1)[stone] * (1 + 0.1 * noise(rng, 4, 5))
    colours = ([0.55, 0.27, 0.2], [0.4, 0.3, 0.27], [0.3, 0.3, 0.33])
    colour = np.array(colours[rng.integers(3)]) * rng.uniform(0.8, 1.2)
    return opaque(_rgb(np.where(joint, 0.6 * tone, tone), colour))


def _rect(img: np.ndarray, x0: float, y0: float, x1: float, y1: float, value: np.ndarray) -> None:
    x0, x1, y0, y1 = (int(np.clip(v * SIZE, 0, SIZE)) for v in (x0, x1, y0, y1))
    if x1 > x0 and y1 > y0:
        img[y0:y1, x0:x1] = value if value.ndim == 1 else value[y0:y1, x0:x1]


def facade(rng: np.random.Generator) -> np.ndarray:
    """One bay and one storey: a wall with a window, its frame, sill, shutters."""
    makers = (plaster, plaster, masonry)
    img = makers[rng.integers(3)](rng)[..., :3].astype(np.float32) / 255.0
    width, height = rng.uniform(0.28, 0.6), rng.uniform(0.38, 0.62)
    x0, y0 = 0.5 - width / 2, rng.uniform(0.12, 0.3)
    x1, y1 = x0 + width, y0 + height
    frame = np.full(3, rng.choice([0.9, 0.8, 0.35, 0.2])) * rng.uniform(0.8, 1.1, 3)
    trim = rng.uniform(0.015, 0.06)
    if rng.random() < 0.6:
        stone = img.mean((0, 1)) * rng.uniform(0.6, 1.3)
        _rect(img, x0 - 2 * trim, y0 - 2 * trim, x1 + 2 * trim, y1 + 2 * trim, stone)
    if rng.random() < 0.3:
        shutter = rng.uniform(0.15, 0.5, 3)
        _rect(img, x0 - width * 0.45, y0, x1 + width * 0.45, y1, shutter)
    _rect(img, x0 - trim, y0 - trim, x1 + trim, y1 + trim, frame)
    glass = (0.13 + 0.1 * noise(rng, 2, 3))[..., None] * np.array([0.9, 1.0, 1.15])
    if rng.random() < 0.3:
        glass = glass + rng.uniform(0.1, 0.4)
    _rect(img, x0, y0, x1, y1, glass.astype(np.float32))
    if rng.random() < 0.4:
        blind = np.full(3, rng.uniform(0.5, 0.9))
        _rect(img, x0, y0, x1, y0 + height * rng.uniform(0.1, 0.6), blind)
    bars = int(rng.integers(0, 3))
    for bar in range(1, bars + 1):
        x = x0 + width * bar / (bars + 1)
        _rect(img, x - 0.012, y0, x + 0.012, y1, frame)
    if rng.random() < 0.5:
        _rect(img, x0, y0 + height * 0.3, x1, y0 + height * 0.3 + 0.02, frame)
    _rect(img, x0 - 2 * trim, y1 + trim, x1 + 2 * trim, y1 + trim + 0.03, frame * 0.8)
    if rng.random() < 0.3:
        _rect(img, 0, 0.95, 1, 1, img.mean((0, 1)) * rng.uniform(0.6, 1.2))
    return opaque(img)


def shop(rng: np.random.Generator) -> np.ndarray:
    """A ground floor: shop window, gate or door."""
    img = masonry(rng)[..., :3].astype(np.float32) / 255.0 * 0.8
    frame = rng.uniform(0.1, 0.6, 3)
    _rect(img, 0.08, 0.2, 0.92, 1.0, frame)
    glass = (0.1 + 0.12 * noise(rng, 4, 4))[..., None] * rng.uniform(0.7, 1.2, 3)
    _rect(img, 0.12, 0.24, 0.6, 0.85, glass.astype(np.float32))
    _rect(img, 0.65, 0.24, 0.88, 1.0, (glass * rng.uniform(0.5, 2.5)).astype(np.float32))
    if rng.random() < 0.6:
        _rect(img, 0.05, 0.05, 0.95, 0.18, rng.uniform(0.1, 0.9, 3))
    return opaque(img)


def _greens(rng: np.random.Generator) -> np.ndarray:
    colour = np.array([rng.uniform(0.5, 0.9), rng.uniform(0.8, 1.0), rng.uniform(0.25, 0.5)])
    if rng.random() < 0.15:  # autumn
        colour = np.array([1.1, rng.uniform(0.5, 0.8), rng.uniform(0.15, 0.3)])
    return colour * rng.uniform(0.75, 1.15)


def leaves(rng: np.random.Generator) -> np.ndarray:
    """A clump of leaves with holes: alpha is cut out."""
    value = 0.3 + 0.16 * noise(rng, 8, 5, 0.85) + 0.1 * noise(rng, 32, 3, 0.9)
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    edge = np.sqrt(x**2 + y**2) + 0.35 * noise(rng, 4, 5, 0.8)
    holes = noise(rng, 8, 4, 0.9)
    out = opaque(_rgb(value, _greens(rng)))
    out[..., 3] = np.where((edge < 0.85) & (holes > rng.uniform(-0.45, -0.2)), 255, 0)
    return out


def twigs(rng: np.random.Generator) -> np.ndarray:
    """Bare or sparse branches: thin lines, alpha is cut out."""
    alpha = np.zeros((SIZE, SIZE), np.uint8)
    for _ in range(40):
        start = np.array([SIZE / 2, SIZE]) + rng.normal(0, 15, 2)
        angle = rng.uniform(-2.6, -0.5)
        for width in (4, 3, 2, 1):
            angle += rng.normal(0, 0.35)
            end = start + rng.uniform(20, 70) * np.array([np.cos(angle), np.sin(angle)])
            cv2.line(alpha, start.astype(int).tolist(), end.astype(int).tolist(), 255, width)
            start = end
    out = opaque(_rgb(0.25 + 0.06 * noise(rng, 8), [1.0, 0.85, 0.7]))
    out[..., 3] = alpha
    return out


def bush(rng: np.random.Generator) -> np.ndarray:
    """Dense foliage without holes, for hedges and the inside of crowns."""
    value = 0.28 + 0.14 * noise(rng, 8, 5, 0.85) + 0.1 * noise(rng, 32, 4, 0.95)
    return opaque(_rgb(value, _greens(rng)))


def bark(rng: np.random.Generator) -> np.ndarray:
    """Vertical streaks."""
    streaks = cv2.resize(noise(rng, 16, 5, 0.8)[:64], (SIZE, SIZE))
    value = 0.32 + 0.12 * streaks + 0.05 * noise(rng, 32, 3)
    return opaque(_rgb(value, [1.0, rng.uniform(0.85, 1.0), rng.uniform(0.7, 0.9)]))


def fence(rng: np.random.Generator) -> np.ndarray:
    """Pickets, bars or mesh: alpha is cut out."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    kind = rng.integers(3)
    if kind == 0:
        mask = (x * rng.integers(6, 14)) % 1.0 < rng.uniform(0.3, 0.8)
    elif kind == 1:
        mask = (x * rng.integers(10, 24)) % 1.0 < rng.uniform(0.15, 0.3)
    else:
        count = rng.integers(12, 20)
        mask = (((x + y) * count) % 1.0 < 0.15) | (((x - y) * count) % 1.0 < 0.15)
    mask |= (np.abs(y - 0.15) < 0.04) | (np.abs(y - 0.85) < 0.04)
    colours = ([0.8, 0.8, 0.8], [0.45, 0.32, 0.2], [0.2, 0.22, 0.2], [0.5, 0.52, 0.55])
    out = opaque(_rgb(1 + 0.15 * noise(rng, 4), colours[rng.integers(4)]))
    out[..., 3] = np.where(mask, 255, 0)
    return out


def sign(rng: np.random.Generator) -> np.ndarray:
    """A traffic sign, direction board or poster: bold shapes on one colour."""
    bold = np.array([[0.8, 0.1, 0.1], [0.1, 0.2, 0.7], [0.9, 0.75, 0.1], [0.9, 0.9, 0.9]])
    img = np.tile(bold[rng.integers(4)], (SIZE, SIZE, 1)).astype(np.float32)
    for _ in range(rng.integers(1, 6)):
        x, y = rng.uniform(0, 0.8, 2)
        w, h = rng.uniform(0.1, 0.5, 2)
        colour = rng.choice([0.05, 0.95]) * np.ones(3) if rng.random() < 0.6 else rng.random(3)
        _rect(img, x, y, x + w, y + h, colour)
    return opaque(img * rng.uniform(0.7, 1.0))


def round_sign(rng: np.random.Generator) -> np.ndarray:
    """A round or triangular sign: alpha is cut out."""
    out = sign(rng)
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    shape = np.sqrt(x**2 + y**2) if rng.random() < 0.7 else np.maximum(np.abs(x) * 1.7 - y, y) * 0.9
    rim = np.array([[200, 25, 25], [30, 60, 180], [230, 230, 230]])[rng.integers(3)]
    out[..., :3] = np.where((shape > 0.7)[..., None], rim, 215 - 0 * rim)
    out[..., :3][(np.abs(x) < 0.4) & (np.abs(y) < 0.25) & (shape < 0.6)] = rng.integers(10, 60, 3)
    out[..., 3] = np.where(shape < 0.98, 255, 0)
    return out


def contact(rng: np.random.Generator) -> np.ndarray:
    """The dark ground below a vehicle, dithered towards its edge (alpha is cut out)."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    reach = 1.0 - np.maximum(np.abs(x), np.abs(y))
    out = opaque(np.full((SIZE, SIZE, 3), 0.08, np.float32))
    out[..., 3] = np.where(reach * 4.0 > rng.random((SIZE, SIZE)), 255, 0)
    return out


def paint(rng: np.random.Generator) -> np.ndarray:
    """Worn road paint."""
    value = 0.85 + 0.1 * noise(rng, 8, 5, 0.8)
    out = opaque(_rgb(value, [1.0, 1.0, 0.97]))
    out[..., 3] = np.where(noise(rng, 16, 4, 0.9) > rng.uniform(-1.5, -0.4), 255, 0)
    return out


def plain(rng: np.random.Generator) -> np.ndarray:
    """Mid grey with a trace of dirt: takes its colour from the tint."""
    return opaque(_rgb(0.735 + 0.02 * noise(rng, 4, 4), [1.0, 1.0, 1.0]))


def clouds(rng: np.random.Generator) -> np.ndarray:
    """Cloud density in every channel."""
    value = np.clip(0.5 + 0.7 * noise(rng, 4, 6, 0.55), 0, 1)
    return opaque(_rgb(value, [1.0, 1.0, 1.0]))


_MAKERS: dict[str, tuple[Callable[[np.random.Generator], np.ndarray], int]] = {
    "asphalt": (asphalt, 5),
    "paving": (paving, 5),
    "grass": (grass, 5),
    "soil": (soil, 3),
    "facade": (facade, 14),
    "shop": (shop, 4),
    "masonry": (masonry, 6),
    "plaster": (plaster, 4),
    "roof": (roof, 4),
    "leaves": (leaves, 8),
    "twigs": (twigs, 2),
    "bush": (bush, 5),
    "bark": (bark, 3),
    "fence": (fence, 4),
    "sign": (sign, 6),
    "round_sign": (round_sign, 4),
    "contact": (contact, 1),
    "paint": (paint, 2),
    "plain": (plain, 1),
    "clouds": (clouds, 3),
}


def _drawn(seed: int | Sequence[int]) -> tuple[list[np.ndarray], np.random.Generator]:
    """The layers of all makers, and what draws whatever comes after them."""
    rng = np.random.default_rng(seed)
    return [maker(rng) for maker, count in _MAKERS.values() for _ in range(count)], rng


class TextureBank:
    """All layers of one texture array and the layers of each kind.

    images: real frames to cut patches from; the kinds `real_wall`, `real_green`, `real_any` and
    `real_ground` exist only with them. Same seed and images, same bytes.
    """

    def __init__(self, seed: int | Sequence[int], images: Sequence[Path] = ()) -> None:
        layers, rng = _drawn(seed)
        self.kinds: dict[str, list[int]] = {}
        first = 0
        for kind, (_, count) in _MAKERS.items():
            self.kinds[kind] = list(range(first, first + count))
            first += count
        for patch in real_patches(rng, images):
            kind = "real_green" if is_green(patch) else "real_wall"
            self.kinds.setdefault(kind, []).append(len(layers))
            self.kinds.setdefault("real_any", []).append(len(layers))
            layers.append(patch)
        for patch in real_patches(rng, images, ground=True):
            self.kinds.setdefault("real_ground", []).append(len(layers))
            layers.append(patch)
        self.pixels = np.stack(layers)
        """(layers, SIZE, SIZE, 4) uint8."""

    def pick(self, rng: np.random.Generator, *kinds: str) -> int:
        """A random layer of one of the kinds that exist (at least one must)."""
        present = [k for k in kinds if k in self.kinds]
        return int(rng.choice(self.kinds[present[rng.integers(len(present))]]))
