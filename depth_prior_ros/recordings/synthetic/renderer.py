"""Draws worlds with OpenGL in memory: linear radiance and exact depth.

The projection follows the project's cameras: pixel (u, v) is the centre of a picture element, so
that u = fx * x / z + cx. Depth is z in the camera frame, taken from 1 / gl_FragCoord.w in float32.

Of the GLSL, radiance is linear; the result's fourth channel is depth, 0 = sky.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import cv2
import numpy as np

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.geometry.poses import rigid_inverse
from depth_prior_ros.recordings.synthetic.mesh import FLOATS_PER_VERTEX, Mesh
from depth_prior_ros.recordings.synthetic.textures import TextureBank

_T = TypeVar("_T")
NEAR, FAR = 0.2, 2000.0
MISSING_EGL = (
    "no OpenGL context could be created through EGL; install the Debian packages"
    " libegl1 and libgl1-mesa-dri"
)

MISSING_MODERNGL = "the Python package moderngl is not installed; pip install moderngl"


class RendererUnavailableError(RuntimeError):
    """OpenGL in memory does not work here; the message says what to install."""


@dataclass(frozen=True)
class Light:
    """Sun, sky and air. Colours are linear RGB; the direction points to the sun."""

    sun_direction: tuple[float, float, float] = (-0.4, 0.5, 0.76)
    sun: tuple[float, float, float] = (1.6, 1.5, 1.3)
    ambient: tuple[float, float, float] = (0.4, 0.45, 0.55)
    horizon: tuple[float, float, float] = (1.0, 1.1, 1.2)
    zenith: tuple[float, float, float] = (0.3, 0.5, 0.9)
    clouds: float = 0.4
    cloud_layer: int = 0
    fog: float = 0.002  # per metre


@dataclass
class Drawing:
    """What a renderer draws: a static mesh sorted along the road, and the layers with holes."""

    mesh: Mesh
    cutout_layers: Sequence[int] = ()
    along: np.ndarray | None = None
    """(triangles,) road position of each triangle, ascending; None draws everything."""


_LAYOUT = "3f 3f 2f 1f 4f"
_NAMES = ("in_position", "in_normal", "in_uv", "in_layer", "in_tint")


def clip_from_camera(camera: Camera) -> np.ndarray:
    """(4, 4) projection; image row 0 becomes the first row that OpenGL reads back."""
    matrix = np.zeros((4, 4))
    matrix[0, 0] = 2.0 * camera.fx / camera.width
    matrix[0, 2] = 2.0 * (camera.cx + 0.5) / camera.width - 1.0
    matrix[1, 1] = 2.0 * camera.fy / camera.height
    matrix[1, 2] = 2.0 * (camera.cy + 0.5) / camera.height - 1.0
    matrix[2, 2] = (FAR + NEAR) / (FAR - NEAR)
    matrix[2, 3] = -2.0 * FAR * NEAR / (FAR - NEAR)
    matrix[3, 2] = 1.0
    return matrix


def _in_context(method: Callable[..., _T]) -> Callable[..., _T]:
    """Makes the renderer's own context the current one: several may live in one thread."""

    @wraps(method)
    def wrapped(self: Renderer, *args: Any, **kwargs: Any) -> _T:
        with self._gl:
            return method(self, *args, **kwargs)

    return wrapped


class Renderer:
    """An OpenGL context, the textures of one bank and one world at a time."""

    name = "gl"

    def __init__(self, shadow_size: int = 1024) -> None:
        # One software thread draws small pictures with the least work; set before the driver loads.
        os.environ.setdefault("LP_NUM_THREADS", "0")
        try:
            import moderngl
        except ImportError as error:
            raise RendererUnavailableError(f"{MISSING_MODERNGL} ({error})") from error
        settings: dict[str, Any] = {"backend": "egl"}
        try:
            self._gl = moderngl.create_context(standalone=True, **settings)
        except Exception as error:  # moderngl raises plain Exception
            raise RendererUnavailableError(f"{MISSING_EGL} ({error})") from error
        self._programs: dict[tuple[str, bool], Any] = {}
        for cutout in (False, True):
            self._programs["colour", cutout] = self._program(VERTEX, FRAGMENT, cutout)
            self._programs["shadow", cutout] = self._program(VERTEX, SHADOW_FRAGMENT, cutout)
        self._sky = self._gl.program(vertex_shader=SKY_VERTEX, fragment_shader=SKY_FRAGMENT)
        corners = np.array([-1, -1, 1, -1, -1, 1, 1, 1], np.float32)
        self._sky_array = self._gl.vertex_array(
            self._sky, [(self._gl.buffer(corners.tobytes()), "2f", "in_corner")]
        )
        self._shadow_map = self._gl.depth_texture((shadow_size, shadow_size))
        self._shadow_map.compare_func = "<="
        self._shadow_target = self._gl.framebuffer(depth_attachment=self._shadow_map)
        self._targets: dict[tuple[int, int], Any] = {}
        self._textures: Any = None
        self._static: _Drawn | None = None
        self._drawing = Drawing(Mesh.empty())
        self._shadow_matrix = np.eye(4)

    def _program(self, vertex: str, fragment: str, cutout: bool) -> Any:
        define = "#version 330\n#define CUTOUT" if cutout else "#version 330"
        return self._gl.program(
            vertex_shader=vertex, fragment_shader=fragment.replace("#version 330", define)
        )

    @_in_context
    def load_textures(self, bank: TextureBank) -> None:
        """Upload a bank; it replaces the one before."""
        if self._textures is not None:
            self._textures.release()
        pixels = np.ascontiguousarray(bank.pixels)
        layers, height, width, _ = pixels.shape
        self._textures = self._gl.texture_array((width, height, layers), 4, pixels.tobytes())
        self._textures.build_mipmaps()
        self._textures.filter = (self._gl.LINEAR_MIPMAP_LINEAR, self._gl.LINEAR)

    @_in_context
    def load(self, drawing: Drawing) -> None:
        """Upload the static part of a world; it replaces the one before."""
        if self._static is not None:
            self._static.release()
        self._drawing = drawing
        self._static = _Drawn(self, drawing.mesh, drawing.cutout_layers, drawing.along)

    def _target(self, size: tuple[int, int]) -> Any:
        if size not in self._targets:
            colour = self._gl.texture(size, 4, dtype="f4")
            depth = self._gl.depth_renderbuffer(size)
            self._targets[size] = self._gl.framebuffer([colour], depth)
        return self._targets[size]

    @_in_context
    def cast_shadows(
        self,
        light: Light,
        centre: np.ndarray,
        radius: float,
        movers: Mesh | None = None,
        around: tuple[float, float] | None = None,
    ) -> None:
        """Redraw the shadow map for a disc of `radius` metres about `centre` (3,)."""
        self._shadow_matrix = shadow_from_world(np.asarray(light.sun_direction), centre, radius)
        self._shadow_target.use()
        self._shadow_target.clear(depth=1.0)
        self._gl.enable_only(self._gl.DEPTH_TEST)
        self._draw("shadow", {"clip_from_world": self._shadow_matrix}, movers, around)

    def _draw(
        self,
        role: str,
        values: dict[str, Any],
        movers: Mesh | None,
        around: tuple[float, float] | None,
        standing: Mesh | None = None,
    ) -> None:
        assert self._textures is not None, "load_textures comes first"
        self._textures.use(0)
        self._shadow_map.use(1)
        layers = self._drawing.cutout_layers
        apart = [
            (_Drawn(self, mesh, layers, None), sign)
            for mesh, sign in ((movers, -1.0), (standing, 1.0))
            if mesh is not None
        ]
        for cutout in (False, True):
            program = self._programs[role, cutout]
            _assign(program, values)
            if self._static is not None:
                _assign(program, {"depth_sign": 1.0})
                self._static.draw(role, cutout, around)
            for drawn, sign in apart:
                _assign(program, {"depth_sign": sign})
                drawn.draw(role, cutout, None)
        for drawn, _ in apart:
            drawn.release()

    @_in_context
    def render_linear(
        self,
        camera: Camera,
        world_from_camera: np.ndarray,
        light: Light,
        movers: Mesh | None = None,
        supersample: int = 2,
        around: tuple[float, float] | None = None,
        standing: Mesh | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Radiance (H, W, 3), depth (H, W) in metres (0 = sky), moving (H, W) bool.

        movers: what moves by itself at this moment. standing: what could, but waits. around: the
        stretch of road to draw, in the units of `Drawing.along`.
        """
        size = (camera.width * supersample, camera.height * supersample)
        target = self._target(size)
        target.use()
        self._gl.enable_only(self._gl.DEPTH_TEST)
        target.clear(0.0, 0.0, 0.0, 0.0, depth=1.0)
        clip_from_world = clip_from_camera(camera) @ rigid_inverse(world_from_camera)
        values = {
            "clip_from_world": clip_from_world,
            "shadow_from_world": self._shadow_matrix,
            "eye": tuple(world_from_camera[:3, 3]),
            "sun_direction": light.sun_direction,
            "sun": light.sun,
            "ambient": light.ambient,
            "horizon": light.horizon,
            "zenith": light.zenith,
            "fog": light.fog,
            "clouds": light.clouds,
            "cloud_layer": float(light.cloud_layer),
            "world_from_clip": np.linalg.inv(clip_from_world),
            "textures": 0,
            "shadows": 1,
        }
        self._draw("colour", values, movers, around, standing)
        _assign(self._sky, values)
        self._sky_array.render(self._gl.TRIANGLE_STRIP)
        raw = np.frombuffer(target.read(components=4, dtype="f4"), np.float32)
        return resolve(raw.reshape(size[1], size[0], 4), supersample, 0.75 / camera.fy)

    def release(self) -> None:
        """Give the context back; the renderer cannot be used any more."""
        self._gl.release()


def resolve(
    raw: np.ndarray, factor: int, slack: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples (H*f, W*f, 4) of radiance and signed depth to pixels; see `Renderer.render_linear`.

    On a plane, inverse depth is linear in the image, so the mean inverse depth of the samples is
    exact at the pixel's centre. Across an edge the second nearest sample counts.

    slack: spread of inverse depth (1/m) within a pixel that the ground at the horizon has, where
    the spread is large against the inverse depth itself.
    """
    height, width = raw.shape[0] // factor, raw.shape[1] // factor
    signed = raw[..., 3]
    if factor == 1:
        return raw[..., :3].copy(), np.abs(signed), signed < 0
    radiance = cv2.resize(raw, (width, height), interpolation=cv2.INTER_AREA)[..., :3]
    blocks = [signed[i::factor, j::factor] for i in range(factor) for j in range(factor)]
    samples = np.stack(blocks)
    inverse = np.where(samples == 0, 0.0, 1.0 / np.where(samples == 0, 1.0, np.abs(samples)))
    low, high = inverse.min(0), inverse.max(0)
    flat = (low > 0.93 * high) | ((low > 0) & (high - low < slack))
    chosen = np.where(flat, inverse.mean(0), np.partition(inverse, -2, axis=0)[-2])
    depth = np.where(chosen > 0, 1.0 / np.where(chosen > 0, chosen, 1.0), 0.0)
    moving = (samples < 0).sum(0) * 2 >= len(blocks)
    return radiance, depth.astype(np.float32), moving


def _assign(program: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if name not in program:
            continue
        if isinstance(value, np.ndarray):
            program[name].write(np.ascontiguousarray(value.T, np.float32).tobytes())
        else:
            program[name].value = value


def shadow_from_world(direction: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    """(4, 4) parallel projection along the sun's rays: a disc about `centre` becomes [-1, 1]."""
    forward = -direction / np.linalg.norm(direction)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(right, forward), forward])
    matrix = np.eye(4)
    matrix[:3, :3] = rotation / np.array([[radius], [radius], [radius * 1.5]])
    matrix[:3, 3] = -matrix[:3, :3] @ centre
    return matrix


class _Drawn:
    """A mesh on the device, split into triangles with and without holes."""

    def __init__(
        self, renderer: Renderer, mesh: Mesh, cutout_layers: Sequence[int], along: np.ndarray | None
    ) -> None:
        gl = renderer._gl
        self._vertices = gl.buffer(
            np.ascontiguousarray(mesh.vertices, np.float32).tobytes()
            or b"0" * 4 * FLOATS_PER_VERTEX
        )
        layers = mesh.vertices[mesh.indices[:, 0], 8] if len(mesh.indices) else np.zeros(0)
        holes = np.isin(layers, np.asarray(cutout_layers, np.float32))
        self._parts: dict[tuple[str, bool], Any] = {}
        self._along: dict[bool, np.ndarray | None] = {}
        self._count: dict[bool, int] = {}
        self._buffers = [self._vertices]
        for cutout in (False, True):
            chosen = holes == cutout
            self._count[cutout] = 3 * int(chosen.sum())
            self._along[cutout] = None if along is None else along[chosen]
            if not self._count[cutout]:
                continue
            indices = gl.buffer(np.ascontiguousarray(mesh.indices[chosen]).tobytes())
            self._buffers.append(indices)
            for role in ("colour", "shadow"):
                program = renderer._programs[role, cutout]
                used = [(n, f) for n, f in zip(_NAMES, _LAYOUT.split(), strict=True)]
                layout = " ".join(f if n in program else f"{4 * int(f[0])}x" for n, f in used)
                names = [n for n, _ in used if n in program]
                self._parts[role, cutout] = gl.vertex_array(
                    program, [(self._vertices, layout, *names)], indices
                )

    def draw(self, role: str, cutout: bool, around: tuple[float, float] | None) -> None:
        """Draw the triangles of one kind, all or those of a stretch of road."""
        part = self._parts.get((role, cutout))
        if part is None:
            return
        first, last = 0, self._count[cutout] // 3
        along = self._along[cutout]
        if around is not None and along is not None:
            first, last = np.searchsorted(along, around).tolist()
        if last > first:
            part.render(vertices=3 * (last - first), first=3 * first)

    def release(self) -> None:
        """Free the device memory."""
        for part in self._parts.values():
            part.release()
        for buffer in self._buffers:
            buffer.release()


VERTEX = """
#version 330
in vec3 in_position; in vec3 in_normal; in vec2 in_uv; in float in_layer; in vec4 in_tint;
uniform mat4 clip_from_world; uniform mat4 shadow_from_world;
out vec3 world; out vec3 normal; out vec3 uv; out vec4 tint; out vec3 shade;
void main() {
    world = in_position; normal = in_normal; uv = vec3(in_uv, in_layer); tint = in_tint;
    gl_Position = clip_from_world * vec4(in_position, 1.0);
    shade = (shadow_from_world * vec4(in_position + 0.06 * in_normal, 1.0)).xyz * 0.5 + 0.5;
}
"""

FRAGMENT = """
#version 330
in vec3 world; in vec3 normal; in vec3 uv; in vec4 tint; in vec3 shade;
uniform sampler2DArray textures; uniform sampler2DShadow shadows;
uniform vec3 eye; uniform vec3 sun_direction; uniform vec3 sun; uniform vec3 ambient;
uniform vec3 horizon; uniform vec3 zenith; uniform float fog; uniform float depth_sign;
out vec4 result;
void main() {
    vec4 texel = texture(textures, uv);
    #ifdef CUTOUT
    if (texel.a < 0.5) discard;
    #endif
    vec3 albedo = texel.rgb * texel.rgb * tint.rgb * 2.0;
    float z = 1.0 / gl_FragCoord.w;
    vec3 view = world - eye;
    float range = length(view);
    vec3 n = normal / max(length(normal), 1e-6);
    float lit = dot(n, sun_direction);
    #ifdef CUTOUT
    lit = 0.65 * lit + 0.35;
    #endif
    lit = max(lit, 0.0);
    if (lit > 0.0 && all(greaterThan(shade, vec3(0.0))) && all(lessThan(shade, vec3(1.0))))
        lit *= texture(shadows, vec3(shade.xy, shade.z - 0.0006));
    vec3 light = sun * lit + ambient * (0.65 + 0.35 * n.z);
    vec3 colour = albedo * light;
    if (tint.a > 0.0) {
        vec3 ray = view / range;
        vec3 bounce = reflect(ray, n);
        float fresnel = 0.25 + 0.75 * pow(max(1.0 - abs(dot(ray, n)), 0.0), 3.0);
        vec3 mirror = bounce.z > 0.08 ? mix(horizon, zenith, bounce.z) : vec3(0.12) * ambient;
        mirror += sun * 6.0 * pow(max(dot(bounce, sun_direction), 0.0), 60.0) * min(lit * 3.0, 1.0);
        colour = mix(colour, mirror, tint.a * fresnel);
    }
    colour = mix(horizon * 0.8, colour, exp(-fog * range));
    result = vec4(colour, depth_sign * z);
}
"""

SHADOW_FRAGMENT = """
#version 330
in vec3 uv; uniform sampler2DArray textures;
void main() {
    #ifdef CUTOUT
    if (texture(textures, uv).a < 0.5) discard;
    #endif
}
"""

SKY_VERTEX = """
#version 330
in vec2 in_corner; uniform mat4 world_from_clip; out vec3 ray;
void main() {
    vec4 far = world_from_clip * vec4(in_corner, 1.0, 1.0);
    vec4 near = world_from_clip * vec4(in_corner, -1.0, 1.0);
    ray = far.xyz / far.w - near.xyz / near.w;
    gl_Position = vec4(in_corner, 0.9999999, 1.0);
}
"""

SKY_FRAGMENT = """
#version 330
in vec3 ray; uniform sampler2DArray textures; uniform vec3 horizon; uniform vec3 zenith;
uniform vec3 sun_direction; uniform vec3 sun; uniform float clouds; uniform float cloud_layer;
out vec4 result;
void main() {
    vec3 r = normalize(ray);
    float up = max(r.z, 0.0);
    vec3 colour = mix(horizon, zenith, pow(up, 0.6));
    float cover = texture(textures, vec3(r.xy / (up + 0.12) * 0.18, cloud_layer)).r;
    float density = smoothstep(1.0 - clouds, 1.3 - clouds, cover) * smoothstep(0.0, 0.12, up);
    colour = mix(colour, horizon * 1.25 - 0.3 * cover, density);
    colour += sun * pow(max(dot(r, sun_direction), 0.0), 200.0) * 4.0;
    result = vec4(colour, 0.0);
}
"""
