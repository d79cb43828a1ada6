"""The lifecycle node: camera images in, metric depth out.

Topics are relative and remappable; docs/node.md lists them. Configuring loads the bundle and warms
up, activating subscribes. With ``autostart`` the node does both by itself, and ends with exit code
1 where it cannot.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.utilities import get_rmw_implementation_identifier

from depth_prior_ros.images.calibration import rectification_wanted
from depth_prior_ros.ros.adapting import Adapter
from depth_prior_ros.ros.diagnostics import HealthLog, Statistics, remarks_of, state_of, to_message
from depth_prior_ros.ros.inputs import Calibrations, Inputs
from depth_prior_ros.ros.loading import ScaleKeeper
from depth_prior_ros.ros.mounting import Mounting, TfSubscriptions, tf_message
from depth_prior_ros.ros.outputs.publishers import Outputs
from depth_prior_ros.ros.parameters import Settings
from depth_prior_ros.ros.parameters import node as parameters
from depth_prior_ros.ros.services import Background, RefusedError, Services, save_snapshot
from depth_prior_ros.ros.subscriptions import Subscriptions, image_topic
from depth_prior_ros.ros.worker import INTERNAL, FrameWorker
from depth_prior_ros.scale.road import MountedCamera
from depth_prior_ros.share import home_path
from depth_prior_ros.untrusted import printable

if TYPE_CHECKING:
    from depth_prior_ros.pipeline import DepthPipeline
    from depth_prior_ros.pipeline.sharing import NetworkPool


_Transition = Callable[["DepthNode", LifecycleState], TransitionCallbackReturn]


def _logged(transition: _Transition) -> _Transition:
    """Say what went wrong in a transition: rclpy turns exceptions into ERROR without a word."""

    @functools.wraps(transition)
    def wrapper(node: DepthNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except Exception as error:
            problem = f"{transition.__name__} failed: {type(error).__name__}: {error}"
            node.get_logger().error(problem)
            return TransitionCallbackReturn.ERROR

    return wrapper


def _impossible(settings: Settings, pipeline: DepthPipeline) -> str:
    """Why the bundle in use cannot do what the settings ask for; empty where it can."""
    from depth_prior_ros.ros.loading import scale_of

    if settings.force_model == "multi_frame" and not pipeline.networks.has_multi_frame:
        return f"bundle {pipeline.bundle.path} has no multi-frame network to force"
    try:
        scale_of(settings, pipeline.bundle, pipeline.told)
    except ValueError as error:
        return str(error)
    return ""


class DepthNode(LifecycleNode):
    """The lifecycle node around :class:`~depth_prior_ros.pipeline.DepthPipeline`.

    Args:
        pool: of networks that are shared with other nodes of this process.

    Raises:
        ValueError, rclpy.exceptions.ParameterException: for parameters that cannot be used.
    """

    def __init__(
        self, name: str = "depth_node", *, pool: NetworkPool | None = None, **options: Any
    ) -> None:
        # Before anything that can fail: destroying a node that was half made needs them.
        self._statistics = Statistics(fast_dds="fastrtps" in get_rmw_implementation_identifier())
        self._pool = pool
        self._pipeline: DepthPipeline | None = None
        self._inputs: Inputs | None = None
        self._worker: FrameWorker | None = None
        self._keeper: ScaleKeeper | None = None
        self._calibrations: Calibrations = {}  # a camera may send its own once only
        self._listening: Subscriptions | None = None
        self._mounting: Mounting | None = None
        self._tf: TfSubscriptions | None = None
        self._mount_told: MountedCamera | None = None
        self._outputs: Outputs | None = None
        self._background: Background | None = None
        self._lifecycle = "unconfigured"
        self._enabled = True
        self._health = HealthLog(self.get_logger)
        self._adapter = Adapter(self.get_logger)
        super().__init__(name, **options)
        self.settings = parameters.declare(self)
        for remark in parameters.unknown(getattr(self, "_parameter_overrides", {})):
            self.get_logger().warning(remark)
        self._applied = self.settings  # those that the pipeline has while there is no worker
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # Steady time: with use_sim_time and a paused bag the node still says how it is.
        self.create_timer(
            self.settings.diagnostics_period,
            self._publish_diagnostics,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )
        self._background = Background(self)
        actions = {
            "~/reload_bundle": self._reload_bundle,
            "~/save_snapshot": self._save_snapshot,
            "~/reset_scale": self._reset_scale,
            "~/adapt": self._adapt,
        }
        self._triggers = Services(self, actions, {"~/enable": self._enable})

    # -- transitions ---------------------------------------------------------------------------

    @_logged
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the bundle, prepare the networks and warm up."""
        try:
            # Late, so that a node that is interrupted while it starts ends cleanly.
            from depth_prior_ros.ros.loading import load_pipeline

            if self.settings.tf_base_frame:
                tf_message()
            self.get_logger().info(f"loading bundle {self.settings.bundle} and warming up")
            self._pipeline = load_pipeline(self.settings, self._pool)
            self._applied = self.settings
            self._outputs = self._make_outputs(self._pipeline)
            self._adapter.watch(self._pipeline, self.settings)
        except Exception as error:
            self.get_logger().error(f"cannot configure: {type(error).__name__}: {error}")
            self._release()
            return TransitionCallbackReturn.FAILURE
        self._lifecycle = "inactive"
        self._tell_pipeline(self._pipeline)
        return super().on_configure(state)

    @_logged
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and start the worker."""
        pipeline, outputs, settings = self._pipeline, self._outputs, self.settings
        if pipeline is None or outputs is None:
            return TransitionCallbackReturn.FAILURE
        from depth_prior_ros.ros.loading import apply_settings

        apply_settings(pipeline, settings, self._applied)
        self._applied = settings
        self._adapter.watch(pipeline, settings)
        in_metres, by_tf = settings.scale_mode != "none", bool(settings.tf_base_frame)
        if outputs.metres != in_metres or outputs.tells_road != by_tf:
            # Changed while inactive: whether depth is metres decides what topics are called.
            outputs.destroy()
            outputs = self._outputs = self._make_outputs(pipeline)
        self._listen_to_tf()
        result = super().on_activate(state)
        if result != TransitionCallbackReturn.SUCCESS:
            return result
        # What was seen before a pause says nothing about the first frame after it.
        pipeline.reset()
        outputs.reconfigure(settings)
        outputs.reset()
        topic = image_topic(self, settings)
        self._inputs = Inputs(
            self._statistics.dropped_stale,
            info_topic=self.resolve_topic_name("camera_info"),
            calibrations=self._calibrations,
            rectifies=lambda: rectification_wanted(self.settings.rectify, topic),
        )
        self._keeper = ScaleKeeper(settings.scale_file, self.get_logger())
        self._listening = Subscriptions(
            self,
            settings,
            self._inputs,
            self._statistics,
            self._refuse,
            self._saw,
            lambda: self._enabled,
        )
        self._worker = FrameWorker(
            self._inputs,
            pipeline,
            outputs,
            self._statistics,
            settings,
            self._listening.image_topic,
            self._refuse,
            apply_settings,
            self._keeper,
            self._adapter,
            self._mounting,
        )
        self._worker.start()
        self._lifecycle = "active"
        self.get_logger().info(f"active, waiting for images on {self._listening.image_topic}")
        return TransitionCallbackReturn.SUCCESS

    @_logged
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and let the worker end."""
        self._stop()
        self._lifecycle = "inactive"
        return super().on_deactivate(state)

    @_logged
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Give networks, publishers and calibrations back."""
        self._release()
        self._calibrations.clear()
        self._lifecycle = "unconfigured"
        return super().on_cleanup(state)

    @_logged
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and give everything back, from any state."""
        self._release()
        self._lifecycle = "finalized"
        return super().on_shutdown(state)

    @_logged
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Give everything back, so that the node can be configured again."""
        self._release()
        self._lifecycle = "unconfigured"
        return super().on_error(state)

    def start(self) -> bool:
        """Configure and activate; False where either failed, with the cause in the log."""
        success = TransitionCallbackReturn.SUCCESS
        return self.trigger_configure() == success and self.trigger_activate() == success

    def callback_failed(self, error: Exception) -> None:
        """Count the unexpected error of a callback, which costs one message and no more."""
        self._refuse(INTERNAL, f"{type(error).__name__}: {error}", frame=False)

    def destroy_node(self) -> None:
        """End the worker before its publishers go."""
        self._stop()
        if self._background is not None:
            self._background.join()
        super().destroy_node()

    def _make_outputs(self, pipeline: DepthPipeline) -> Outputs:
        metres = pipeline.scale.status.mode != "none"
        return Outputs(self, self.settings, metres=metres)

    def _listen_to_tf(self) -> None:
        self._forget_tf()
        if not self.settings.tf_base_frame:
            return
        self._mounting = Mounting(self.settings, lambda c, text: self._refuse(c, text, False))
        self._tf = TfSubscriptions(self, self._mounting)

    def _forget_tf(self) -> None:
        if self._tf is not None:
            self._tf.destroy()
        self._tf = self._mounting = self._mount_told = None

    def _follow_mount(self) -> None:
        """Let adaptation look for the road where tf says that it is, and where that changes."""
        sight = self._mounting.newest if self._mounting is not None else None
        if sight is None or self._pipeline is None:
            return
        camera, told = sight.camera, self._mount_told
        same = (
            told is not None
            and abs(told.height - camera.height) < 0.05 * camera.height
            and abs(told.pitch - camera.pitch) < math.radians(1.0)
        )
        if not same:
            self._mount_told = camera
            self.get_logger().info(f"tf: the camera sits {camera}")
            self._adapter.watch(self._pipeline, self._as_mounted())

    def _tell_pipeline(self, pipeline: DepthPipeline) -> None:
        text = f"bundle {pipeline.bundle.path}, {pipeline.backend} ({pipeline.backend_reason})"
        self.get_logger().info(text)
        for remark in remarks_of(pipeline, self._outputs):
            self.get_logger().warning(remark)

    def _stop(self) -> None:
        if self._listening is not None:
            self._listening.destroy()
        self._adapter.cancel("the node was deactivated")
        if self._worker is not None:
            if not self._worker.stop():
                self.get_logger().warning("a frame is still being inferred and was left behind")
            self._applied = self._worker.settings
        if self._keeper is not None and self._pipeline is not None:
            self._keeper.end(self._pipeline)
        self._worker = self._inputs = self._listening = self._keeper = None
        self._forget_tf()

    def _release(self) -> None:
        self._stop()
        self._adapter.forget("the node was cleaned up")
        if self._outputs is not None:
            self._outputs.destroy()
        self._outputs = self._pipeline = None

    # -- messages ------------------------------------------------------------------------------

    def _saw(self, stamp: int) -> None:
        if self._pipeline is not None:
            self._pipeline.frame_rate.saw(stamp)

    def _refuse(self, cause: str, text: str, frame: bool = True) -> None:
        if cause == INTERNAL and not self.context.ok():
            return  # a signal ended the context below the frame: no fault, and nobody to tell
        if cause == "no_camera_info" and self._listening is not None:
            self._listening.forget_stamp()  # sent again with its calibration, it is no copy
        text = printable(text)  # names of encodings and models come from elsewhere
        count = self._statistics.refused(cause, text, frame)
        # A camera that always sends the same wrong thing must not fill the log: 1, 10, 100, ...
        if math.log10(count).is_integer():
            what = "frame" if frame else "message"
            self.get_logger().warning(f"{what} refused ({cause}, {count} so far): {text}")

    # -- parameters ----------------------------------------------------------------------------

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> SetParametersResult:
        """What both parameter services call; an integer is taken where a float is declared."""
        return super().set_parameters_atomically(parameters.as_declared(parameter_list))

    def _on_set_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        settings, answer = parameters.changed(
            parameters.current_values(self), changes, self._lifecycle
        )
        if settings is None:
            return answer
        if self._pipeline is not None and (reason := _impossible(settings, self._pipeline)):
            return SetParametersResult(successful=False, reason=reason)
        self.settings = settings
        if self._worker is not None:
            self._worker.reconfigure(settings)
        return answer

    # -- services ------------------------------------------------------------------------------

    async def _reload_bundle(self) -> str:
        if self._pipeline is None or self._background is None:
            raise RefusedError("the node is not configured: configuring loads the bundle")
        from depth_prior_ros.ros.loading import carry_scale, load_pipeline

        settings, before = self.settings, self._pipeline
        self.get_logger().info(f"loading bundle {settings.bundle} and warming up")
        pipeline = await self._background.run(lambda: load_pipeline(settings, self._pool))
        if self._pipeline is not before:
            raise RefusedError("the node was cleaned up meanwhile")
        if reason := _impossible(self.settings, pipeline):
            raise RefusedError(reason)  # force_model was set meanwhile
        carry_scale(before, pipeline)
        self._adapter.watch(pipeline, self._as_mounted())
        self._pipeline, self._applied = pipeline, settings
        if self._worker is not None:
            self._worker.replace(pipeline, settings)
            self._worker.reconfigure(self.settings)  # changed while it was loaded
        self._tell_pipeline(pipeline)
        return f"{pipeline.bundle.path} on {pipeline.backend}, from the next frame on"

    async def _save_snapshot(self) -> str:
        frame = self._worker.newest if self._worker is not None else None
        if frame is None or self._background is None:
            raise RefusedError("there is no frame yet")
        folder = home_path(self.settings.snapshot_folder).absolute()
        values, state = parameters.current_values(self), self._state()
        path = await self._background.run(lambda: save_snapshot(folder, frame, values, state))
        return str(path)

    async def _reset_scale(self) -> str:
        if self._pipeline is None:
            raise RefusedError("the node is not configured")
        self._pipeline.scale.reset()
        return self._pipeline.scale.status.text

    async def _adapt(self) -> str:
        pipeline, worker = self._pipeline, self._worker
        if pipeline is None or worker is None:
            raise RefusedError("the node is not active")
        return self._adapter.begin(pipeline, worker.camera, self._as_mounted())

    def _as_mounted(self) -> Settings:
        """The settings, with what tf says where they say nothing."""
        sight = self._mounting.newest if self._mounting is not None else None
        if sight is None:
            return self.settings
        camera = sight.camera
        pitch = min(max(math.degrees(camera.pitch), -30.0), 30.0)
        return replace(
            self.settings, scale_camera_height=camera.height, scale_camera_pitch_deg=pitch
        )

    async def _enable(self, enabled: bool) -> str:
        self._enabled = enabled
        if enabled:
            return "images become depth again, from the next one on"
        return "paused: images are left alone until ~/enable is called with true"

    # -- diagnostics ---------------------------------------------------------------------------

    def _state(self) -> dict[str, str]:
        return state_of(
            self._lifecycle,
            self._enabled,
            self.settings.bundle,
            self._pipeline,
            self._outputs,
            self._listening,
            self._worker,
            self._adapter,
            self._mounting,
        )

    def _publish_diagnostics(self) -> None:
        try:
            self._follow_mount()
            self._diagnostics.publish(self._diagnosis())
        except Exception as error:  # a writer that is busy costs one report
            if self.context.ok():
                self.callback_failed(error)

    def _diagnosis(self) -> DiagnosticArray:
        remarks = remarks_of(self._pipeline, self._outputs, self._worker)
        report = self._statistics.report(self._state(), remarks)
        self._health.take(report)
        name = f"{self.get_fully_qualified_name().lstrip('/')}: depth"
        message = to_message(report, name, self.settings.bundle)
        message.header.stamp = self.get_clock().now().to_msg()
        return message
