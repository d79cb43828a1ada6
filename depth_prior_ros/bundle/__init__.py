"""Public names of this room."""

from depth_prior_ros.bundle.bundle import (
    MANIFEST_NAME as MANIFEST_NAME,
)
from depth_prior_ros.bundle.bundle import (
    SCHEMA_VERSION as SCHEMA_VERSION,
)
from depth_prior_ros.bundle.bundle import (
    Architecture as Architecture,
)
from depth_prior_ros.bundle.bundle import (
    Bundle as Bundle,
)
from depth_prior_ros.bundle.bundle import (
    BundleError as BundleError,
)
from depth_prior_ros.bundle.bundle import (
    CameraCodeSpec as CameraCodeSpec,
)
from depth_prior_ros.bundle.bundle import (
    CameraSpec as CameraSpec,
)
from depth_prior_ros.bundle.bundle import (
    DepthSpec as DepthSpec,
)
from depth_prior_ros.bundle.bundle import (
    FactorSpec as FactorSpec,
)
from depth_prior_ros.bundle.bundle import (
    Manifest as Manifest,
)
from depth_prior_ros.bundle.bundle import (
    NetworkSpec as NetworkSpec,
)
from depth_prior_ros.bundle.bundle import (
    PriorSources as PriorSources,
)
from depth_prior_ros.bundle.bundle import (
    PriorSpec as PriorSpec,
)
from depth_prior_ros.bundle.bundle import (
    Provenance as Provenance,
)
from depth_prior_ros.bundle.bundle import (
    ReferencesSpec as ReferencesSpec,
)
from depth_prior_ros.bundle.bundle import (
    TeacherIdentity as TeacherIdentity,
)
from depth_prior_ros.bundle.bundle import (
    Told as Told,
)
from depth_prior_ros.bundle.bundle import (
    build_network as build_network,
)
from depth_prior_ros.bundle.bundle import (
    describe as describe,
)
from depth_prior_ros.bundle.bundle import (
    load_bundle as load_bundle,
)
from depth_prior_ros.bundle.bundle import (
    rewrite_manifest as rewrite_manifest,
)
from depth_prior_ros.bundle.bundle import (
    save_bundle as save_bundle,
)
