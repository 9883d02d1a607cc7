"""A head for `mri_qpan.phantom`: axial slices with a T1-like contrast, eight coils around it, a smooth phase.

Scalp, skull, cortex and white matter are polygons: outlines of smooth functions drawn once on a fine grid.
The polygons, not the grid, are the object. Nuclei, ventricles, vessels, lesions and the resolution bars are
ellipses; deep structures are sections of ellipsoids, so that the slices differ as those of a head do. It is a
likeness only. Axes are those of an axial image: x to the patient's left, y to the back, z (a slice's offset)
to the crown; the bodies of the lateral ventricles lie at z = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter
from skimage.measure import approximate_polygon, find_contours

from mri_qpan.phantom import Ellipse, Phantom, Polygon, Real, Series, Shape

FOV = (220.0, 220.0)
"""Field of view (y, x) in mm that the head fits in, and that its k-space is fastest for."""

STEP, TOLERANCE = 0.5, 0.07
EXTENT = 110.0
HALF_WIDTH, HALF_LENGTH = 74.0, 95.0
CENTRE_BELOW, HALF_HEIGHT = -15.0, 100.0

FAT, SKIN, MUSCLE, BONE, MARROW = 0.9, 0.45, 0.4, 0.05, 0.42
FLUID, GREY, NUCLEUS, WHITE = 0.13, 0.5, 0.58, 0.76

SCALP, CORTEX = 1.4, 2.7
PERIOD = 440.0
"""Of the coils' and the phase's series: twice the field of view."""


def head(coils: int = 8, slices: int = 3, spacing: float = 14.0, seed: int = 0) -> Phantom:
    """Make the phantom.

    Parameters
    ----------
    coils
        Number of receive coils, evenly around the head.
    slices
        Number of slices; the middle one, or the one below the middle, lies at z = 0.
    spacing
        Distance of the slices in mm; the anatomy holds for offsets from -20 to 45 mm.
    seed
        Of the folds of the cortex and of the small vessels.

    Returns
    -------
    Phantom
        Intensities are those of a T1-weighted image with fat at 0.9.
    """
    offsets = tuple((i - (slices - 1) // 2) * spacing for i in range(slices))
    return Phantom(
        slices=tuple((*_layers(z, seed), *_details(z, seed)) for z in offsets),
        offsets=offsets,
        phase=_phase(),
        coils=_coils(coils),
    )


@dataclass(frozen=True)
class _Grid:
    """Functions on the grid that outlines are drawn from, (y, x)."""

    y: Real
    x: Real

    @classmethod
    def make(cls) -> _Grid:
        axis = np.arange(-EXTENT, EXTENT + STEP, STEP)
        y, x = np.meshgrid(axis, axis, indexing="ij")
        return cls(y, x)

    def depth(self, inside: NDArray[np.bool_]) -> Real:
        """Return the distance to the border in mm, positive inside."""
        return STEP * (distance_transform_edt(inside) - distance_transform_edt(~inside))


def _layers(z: float, seed: int) -> list[Shape]:
    """Return skin, fat, muscle, skull, fluid, cortex and white matter, each within the one before."""
    grid = _Grid.make()
    scale = float(np.sqrt(1 - ((z - CENTRE_BELOW) / HALF_HEIGHT) ** 2))
    skin = gaussian_filter(_skin_depth(grid, scale), 2)
    angle = np.arctan2(grid.x, -grid.y)
    side = np.exp(-(((np.abs(angle) - 1.15) / 0.4) ** 2)) * np.clip(1 - (z + 14) / 45, 0, 1)
    fat = 3.8 + 1.0 * np.cos(2 * angle) + 0.7 * np.cos(angle + 2.5) + 0.4 * np.sin(5 * angle + 1)
    muscle = skin - SCALP - fat
    outer_table = muscle - 0.8 - 7 * side
    skull = 6.6 + 1.2 * np.cos(2 * angle) - 1.8 * side + 0.5 * np.cos(3 * angle + 0.7)
    inner_table = outer_table - skull
    marrow = np.minimum(outer_table, skull - outer_table) - 2.1 + 0.3 * np.sin(9 * angle)
    brain = inner_table - 1.6 - 0.5 * np.sin(4 * angle + 2)
    pial = _pial(grid, brain, z, scale, seed)
    white = np.maximum(_white(grid, pial, seed), np.minimum(_core(grid, z, scale), pial - CORTEX))
    fluid = np.minimum(_ventricles(grid, z, scale), white - 0.5)
    nuclei = np.minimum.reduce([_nuclei(grid, z, scale), -fluid - 0.3, white - 0.3])
    levels = [
        (skin, SKIN),
        (skin - SCALP, FAT - SKIN),
        (muscle, MUSCLE - FAT),
        (outer_table, BONE - MUSCLE),
        (marrow, MARROW - BONE),
        (inner_table, FLUID - BONE),
        (pial, GREY - FLUID),
        (white, WHITE - GREY),
        (nuclei, NUCLEUS - WHITE),
        (fluid, FLUID - WHITE),
    ]
    return [shape for level, step in levels for shape in _outlines(level, step)]


def _skin_depth(grid: _Grid, scale: float) -> Real:
    """Return the depth below the skin: an egg, narrower at the front, a little flattened at the sides."""
    v = grid.y / (HALF_LENGTH * scale)
    u = grid.x / (HALF_WIDTH * scale * (1 + 0.07 * v))
    return grid.depth(np.abs(u) ** 2.25 + np.abs(v) ** 2.1 < 1)


def _pial(grid: _Grid, brain: Real, z: float, scale: float, seed: int) -> Real:
    """Return the brain without its sulci and fissures."""
    sulci = _sulci(grid, brain, z, seed)
    fissure = _midline(grid, brain, z)
    sylvian = _sylvian(grid, z, scale)
    return gaussian_filter(np.minimum(brain, -np.maximum.reduce([sulci, fissure, sylvian])), 0.8)


def _sulci(grid: _Grid, brain: Real, z: float, seed: int) -> Real:
    """Return by how much a point lies within a sulcus, in mm: nodal lines of waves along the surface."""
    rng = np.random.default_rng(seed)
    angle = np.arctan2(grid.x / HALF_WIDTH, -grid.y / HALF_LENGTH)
    wave, slow = np.zeros_like(brain), np.zeros_like(brain)
    for _ in range(80):
        turns = int(rng.integers(9, 25))
        inward, upward = rng.normal(0, (1 / 38, 1 / 60))
        phase = rng.uniform(0, 2 * np.pi)
        wave += np.cos(turns * angle + 2 * np.pi * (inward * brain + upward * z) + phase)
    for turns in range(5, 20):
        slow += np.cos(turns * angle + z / 15 + rng.uniform(0, 2 * np.pi)) / np.sqrt(7.5)
    gradient = np.hypot(*np.gradient(wave, STEP)) + 1e-3
    reach = 19 + 5 * slow + 0.12 * z
    half_width = np.clip(2.2 * (1 - brain / reach), -1, 0.85) + 0.5 * np.exp(-np.clip(brain, 0, None) / 2)
    return half_width - np.abs(wave) / gradient


def _midline(grid: _Grid, brain: Real, z: float) -> Real:
    """Return the interhemispheric fissure: from front and back, joined above the corpus callosum."""
    bend = 1.2 * np.sin(grid.y / 17 + 0.5)
    rise = 1.4 * (z + max(z, 0.0))
    front, back = rise - 40, 40 - rise
    open_end = np.maximum(front - grid.y, grid.y - back)
    half_width = np.clip(0.9 + open_end / 20, -2, 0.9) + 0.8 * np.exp(-np.clip(brain, 0, None) / 3)
    return half_width - np.abs(grid.x - bend)


def _sylvian(grid: _Grid, z: float, scale: float) -> Real:
    """Return both lateral fissures with the insular cistern, which close towards the vertex."""
    width = 1.2 * np.clip(1 - (z + 6) / 26, -1, 1)
    level = np.full_like(grid.x, -np.inf)
    for sign, shift in ((-1, 0.0), (1, 2.5)):
        stem = np.array([[70, 6], [58, 3], [50, 5], [43, 1], [39, -8], [40, -18], [45, -25]])
        branch = np.array([[43, 1], [40.5, 10], [43, 18], [48, 21]])
        for line in (stem, branch):
            level = np.maximum(level, width - _distance(grid, scale * (line * (sign, 1) + (0, shift))))
    return level


def _distance(grid: _Grid, line: Real) -> Real:
    """Return the distance in mm to an open polyline (vertex, 2: x, y)."""
    nearest = np.full_like(grid.x, np.inf)
    for (x0, y0), (x1, y1) in pairwise(line):
        dx, dy = x1 - x0, y1 - y0
        t = np.clip(((grid.x - x0) * dx + (grid.y - y0) * dy) / (dx**2 + dy**2), 0, 1)
        nearest = np.minimum(nearest, np.hypot(grid.x - x0 - t * dx, grid.y - y0 - t * dy))
    return nearest


def _white(grid: _Grid, pial: Real, seed: int) -> Real:
    """Return what lies deeper than the cortex, whose thickness varies."""
    rng = np.random.default_rng(seed + 1)
    vary = gaussian_filter(rng.standard_normal(pial.shape), 9 / STEP)
    thickness = CORTEX + 0.5 * vary / vary.std()
    return gaussian_filter(grid.depth(pial > 0) - thickness, 1.4)


def _ventricles(grid: _Grid, z: float, scale: float) -> Real:
    """Return lateral ventricles (horns, bodies, atria) and the third one."""
    parts = [_ellipsoid(grid, z, scale, (0.5, -2, -16), (2.2, 13, 10))]
    for sign, size in ((-1, 1.0), (1, 1.12)):
        for centre, semi_axes, tilt in (
            ((10.5, -27, -5), (3.8, 13, 15), 0.42),
            ((11, -2, 3), (4.3, 27, 11), -0.16),
            ((19, 27, -3), (5.2, 15, 14), -0.42),
        ):
            x, y, height = centre
            semi = (semi_axes[0] * size, *semi_axes[1:])
            parts.append(_ellipsoid(grid, z, scale, (sign * x, y, height), semi, sign * tilt))
    septum = np.abs(grid.x) - 0.8
    return np.maximum(parts[0], gaussian_filter(np.minimum(np.maximum.reduce(parts[1:]), septum), 1))


def _nuclei(grid: _Grid, z: float, scale: float) -> Real:
    """Return caudate, lentiform nucleus and thalamus of both sides."""
    parts = [
        _ellipsoid(grid, z, scale, (sign * x, y, height), semi_axes, sign * tilt)
        for sign in (-1, 1)
        for (x, y, height), semi_axes, tilt in (
            ((16, -22, -8), (5, 10, 14), 0.3),
            ((18.5, 0, 5), (2.6, 17, 10), -0.18),
            ((27, -6, -18), (6, 15, 15), 0.2),
            ((11.5, 9, -16), (7.5, 13, 13), -0.45),
        )
    ]
    return np.maximum.reduce(parts)


def _core(grid: _Grid, z: float, scale: float) -> Real:
    """Return the deep white matter that no sulcus may cross: corpus callosum and internal capsule."""
    return _ellipsoid(grid, z, scale, (0, 0, -5), (36, 44, 40))


def _ellipsoid(
    grid: _Grid,
    z: float,
    scale: float,
    centre: tuple[float, float, float],
    semi_axes: tuple[float, float, float],
    tilt: float = 0.0,
) -> Real:
    """Return about the depth in mm in the slice's section of an ellipsoid.

    Its centre and semi-axes (x, y, z) grow with the head; the tilt turns its front end towards +x.
    """
    a, b, c = semi_axes
    dx, dy = grid.x / scale - centre[0], grid.y / scale - centre[1]
    u = np.cos(tilt) * dx + np.sin(tilt) * dy
    v = np.cos(tilt) * dy - np.sin(tilt) * dx
    return min(a, b) * (1 - np.sqrt((u / a) ** 2 + (v / b) ** 2 + ((z - centre[2]) / c) ** 2))


def _outlines(level: Real, intensity: float) -> list[Shape]:
    """Return the polygons around where `level` is positive; those around holes count against."""
    shapes: list[Shape] = []
    for contour in find_contours(level, 0.0, positive_orientation="low"):
        vertices = approximate_polygon(contour, TOLERANCE / STEP)[:-1, ::-1] * STEP - EXTENT
        if len(vertices) > 3:
            shapes.append(Polygon(intensity, vertices))
    return shapes


def _phase() -> Series:
    """Return a smooth phase: a slope, a curvature, and a bump as above the sinuses."""
    points = _points()
    x, y = points.T
    phase = 0.006 * x - 0.009 * y + 0.9 * (x**2 + y**2) / 100**2
    phase += 0.9 * np.exp(-((x / 40) ** 2 + ((y + 85) / 45) ** 2))
    return Series.fit(np.exp(1j * phase), points, 2, PERIOD)


def _coils(count: int) -> Series:
    """Return loops around the head: strong nearby, each with a slope of its phase; RSS 1 on average."""
    points = _points()
    values = []
    for angle in 2 * np.pi * (np.arange(count) + 0.5) / count:
        across, along = points @ (np.cos(angle), np.sin(angle)), points @ (np.sin(angle), -np.cos(angle))
        distance = np.hypot(across, 120 - along)
        values.append((1 + (distance / 95) ** 2) ** -1.5 * np.exp(1j * (angle + across / 90 + along / 200)))
    level = np.sqrt(np.mean(np.abs(np.array(values)) ** 2, axis=1).sum())
    return Series.fit(np.array(values) / level, points, 2, PERIOD)


def _points() -> Real:
    """Return points (point, 2: x, y) that fill the field of view."""
    axis = np.linspace(-EXTENT, EXTENT, 28)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=1)


def _details(z: float, seed: int) -> list[Shape]:
    """Return the ellipses: mottle, veins, lesions and bars, all in the white matter and adding to it."""
    return [*_mottle(z, seed), *_veins(z, seed), *_lesions(z), *_bars()]


def _mottle(z: float, seed: int) -> list[Shape]:
    """Return faint spots: tissue is not of one grey."""
    rng = np.random.default_rng([seed, 2, round(z * 1000) % 2**32])
    shapes: list[Shape] = []
    for _ in range(60):
        radius, turn = np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
        centre = (52 * radius * np.sin(turn), 70 * radius * np.cos(turn))
        semi_axes = (rng.uniform(2, 8), rng.uniform(2, 8))
        shapes.append(Ellipse(rng.normal(0, 0.018), centre, semi_axes, rng.uniform(0, np.pi)))
    return shapes


def _veins(z: float, seed: int) -> list[Shape]:
    """Return thin dark veins that run from the ventricles outwards."""
    rng = np.random.default_rng([seed, 3])
    shapes: list[Shape] = []
    for sign in (-1, 1):
        for y in np.linspace(-34, -14, 4):
            x, turn = rng.uniform(27, 33), rng.normal(0, 0.2)
            length = rng.uniform(4, 7) * np.clip(1 + z / 20, 0.2, 1)
            shapes.append(Ellipse(-0.16, (sign * x, y + rng.normal(0, 1.5)), (length, 0.45), sign * turn))
    return shapes


def _lesions(z: float) -> list[Shape]:
    """Return dark lesions on the left, one with a bright rim."""
    balls = [
        ((31, 10, 3), (3.4, 2.6, 20), -0.3, 0.4),
        ((36, 21, -2), (2.0, 1.5, 25), -0.25, 1.2),
        ((27, 19, 4), (1.2, 1.8, 25), -0.3, 0.0),
        ((33, 31, 0), (4.6, 3.9, 16), 0.22, 0.7),
        ((33, 31, 0), (3.3, 2.7, 14), -0.5, 0.7),
        ((-24, -44, 2), (2.2, 1.4, 22), -0.28, 2.1),
        ((22, -46, 6), (1.0, 1.0, 22), -0.3, 0.0),
    ]
    shapes: list[Shape] = []
    for (x, y, height), (a, b, c), intensity, angle in balls:
        section = np.sqrt(max(0.0, 1 - ((z - height) / c) ** 2))
        if section > 0:
            shapes.append(Ellipse(intensity, (x, y), (a * section, b * section), angle))
    return shapes


def _bars() -> list[Shape]:
    """Return three groups of four dark bars on the right, their pitch along y 3.4, 2.6 and 2 mm."""
    return [
        Ellipse(-0.35, (-32, y + (i - 1.5) * pitch), (3.6, pitch / 4))
        for pitch, y in ((3.4, 9), (2.6, 21.5), (2.0, 32))
        for i in range(4)
    ]
