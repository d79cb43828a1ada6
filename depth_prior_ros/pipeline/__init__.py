"""Public names of this room."""

from depth_prior_ros.geometry.points import (
    to_points as to_points,
)
from depth_prior_ros.pipeline.pictures import (
    colourise as colourise,
)
from depth_prior_ros.pipeline.pipeline import (
    BUDGET_SHARE as BUDGET_SHARE,
)
from depth_prior_ros.pipeline.pipeline import (
    DepthPipeline as DepthPipeline,
)
from depth_prior_ros.pipeline.pipeline import (
    DepthResult as DepthResult,
)
from depth_prior_ros.pipeline.pipeline import (
    InvalidFrameError as InvalidFrameError,
)
from depth_prior_ros.pipeline.pipeline import (
    Model as Model,
)
from depth_prior_ros.pipeline.pipeline import (
    ModelFailedError as ModelFailedError,
)
from depth_prior_ros.pipeline.pipeline import (
    Motion as Motion,
)
from depth_prior_ros.pipeline.pipeline import (
    PoseChoice as PoseChoice,
)
from depth_prior_ros.pipeline.pipeline import (
    Reason as Reason,
)
