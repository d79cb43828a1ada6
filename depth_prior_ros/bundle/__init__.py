"""Public names of this room."""

from depth_prior_ros.bundle.bundle import (
    Bundle,
    build_network,
    describe,
    load_bundle,
    rewrite_manifest,
    save_bundle,
)
from depth_prior_ros.bundle.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    Architecture,
    BundleError,
    CameraCodeSpec,
    CameraSpec,
    DepthSpec,
    FactorSpec,
    Manifest,
    NetworkSpec,
    PriorSpec,
    Provenance,
    ReferencesSpec,
    TeacherIdentity,
    Told,
)
from depth_prior_ros.bundle.prior import PriorSources

__all__ = [
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "Architecture",
    "Bundle",
    "BundleError",
    "CameraCodeSpec",
    "CameraSpec",
    "DepthSpec",
    "FactorSpec",
    "Manifest",
    "NetworkSpec",
    "PriorSources",
    "PriorSpec",
    "Provenance",
    "ReferencesSpec",
    "TeacherIdentity",
    "Told",
    "build_network",
    "describe",
    "load_bundle",
    "rewrite_manifest",
    "save_bundle",
]
