"""GLSL of the renderer. Radiance is linear; the result's fourth channel is depth, 0 = sky."""

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
