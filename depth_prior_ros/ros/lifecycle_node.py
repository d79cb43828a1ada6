"""The lifecycle node: camera images in, metric depth out.

Topics, all relative and remappable: ``image``, ``camera_info`` and ``odom`` in;
``depth/image_rect`` (32FC1, metres), ``depth/camera_info``, ``~/active_model`` and
``/diagnostics`` out. Configuring loads the bundle and warms up, activating subscribes. With
``autostart`` the node does both by itself, and ends with exit code 1 where it cannot.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import (
    QoSDurabilityPolicy,
    QoSHistoryPolicy,
    QoSProfile,
    QoSReliabilityPolicy,
)
from rclpy.signals import SignalHandlerOptions, install_signal_handlers
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String

from depth_prior_ros.ros import parameters
from depth_prior_ros.ros.diagnostics import Statistics, to_message
from depth_prior_ros.ros.events import message_lost_callbacks
from depth_prior_ros.ros.inputs import Inputs, stamp_ns
from depth_prior_ros.ros.messages import MessageError, check_image, depth_to_image
from depth_prior_ros.ros.worker import FrameWorker

if TYPE_CHECKING:
    from depth_prior_ros.pipeline import DepthPipeline, DepthResult


def _qos(depth: int, reliable: bool, latched: bool = False) -> QoSProfile:
    return QoSProfile(
        history=QoSHistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=(
            QoSReliabilityPolicy.RELIABLE if reliable else QoSReliabilityPolicy.BEST_EFFORT
        ),
        durability=(
            QoSDurabilityPolicy.TRANSIENT_LOCAL if latched else QoSDurabilityPolicy.VOLATILE
        ),
    )


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


class DepthNode(LifecycleNode):
    """The lifecycle node around :class:`~depth_prior_ros.pipeline.DepthPipeline`.

    Raises:
        ValueError, rclpy.exceptions.ParameterException: for parameters that cannot be used.
    """

    def __init__(self, name: str = "depth_node", **options: Any) -> None:
        # Before anything that can fail: destroying a node that was half made needs them.
        self._statistics = Statistics()
        self._pipeline: DepthPipeline | None = None
        self._inputs: Inputs | None = None
        self._worker: FrameWorker | None = None
        self._subscribed: dict[str, Any] = {}
        self._outputs: dict[str, Any] = {}
        self._active_model = ""
        self._model_error = ""
        self._lifecycle = "unconfigured"
        super().__init__(name, **options)
        self.settings = parameters.declare(self)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # Steady time: with use_sim_time and a paused bag the node still says how it is.
        self.create_timer(
            self.settings.diagnostics_period,
            self._publish_diagnostics,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )

    @_logged
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the bundle, prepare the networks and warm up."""
        try:
            # Late, so that a node that is interrupted while it starts ends cleanly.
            from depth_prior_ros.ros.loading import load_pipeline

            self.get_logger().info(f"loading bundle {self.settings.bundle} and warming up")
            self._pipeline = load_pipeline(self.settings)
        except Exception as error:
            self.get_logger().error(f"cannot configure: {type(error).__name__}: {error}")
            return TransitionCallbackReturn.FAILURE
        reliable = _qos(2, reliable=True)
        self._outputs = {
            "depth": self.create_lifecycle_publisher(Image, "depth/image_rect", reliable),
            "info": self.create_lifecycle_publisher(CameraInfo, "depth/camera_info", reliable),
            "model": self.create_lifecycle_publisher(
                String, "~/active_model", _qos(1, reliable=True, latched=True)
            ),
        }
        self._lifecycle = "inactive"
        self.get_logger().info(
            f"bundle {self._pipeline.bundle.path}, {self._pipeline.backend} "
            f"({self._pipeline.backend_reason})"
        )
        return super().on_configure(state)

    @_logged
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and start the worker."""
        result = super().on_activate(state)
        if result != TransitionCallbackReturn.SUCCESS or self._pipeline is None:
            return TransitionCallbackReturn.FAILURE
        self._active_model = ""
        # What was seen before a pause says nothing about the first frame after it.
        self._pipeline.reset()
        _apply_settings(self._pipeline, self.settings)
        self._inputs = Inputs(self._statistics.dropped_stale)
        self._worker = FrameWorker(
            self._inputs,
            self._pipeline,
            self._statistics,
            self.settings,
            publish=self._publish,
            refuse=self._refuse,
            apply=_apply_settings,
        )
        self._worker.start()
        self._subscribe()
        self._lifecycle = "active"
        self.get_logger().info(f"active, waiting for images on {self.resolve_topic_name('image')}")
        return TransitionCallbackReturn.SUCCESS

    @_logged
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and let the worker end."""
        self._stop()
        self._lifecycle = "inactive"
        return super().on_deactivate(state)

    @_logged
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Give networks and publishers back."""
        self._release()
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

    def destroy_node(self) -> None:
        """End the worker before its publishers go."""
        self._stop()
        super().destroy_node()

    def _subscribe(self) -> None:
        inputs = self._inputs
        assert inputs is not None
        reliable_image = self.settings.image_reliability == "reliable"
        reliable_odom = self.settings.odom_reliability == "reliable"
        self._subscribed = {
            "image": self.create_subscription(
                Image,
                "image",
                self._on_image,
                _qos(1, reliable_image),
                event_callbacks=message_lost_callbacks(self._statistics.message_lost),
            ),
            "camera_info": self.create_subscription(
                CameraInfo, "camera_info", inputs.put_camera_info, _qos(5, reliable_image)
            ),
            "odom": self.create_subscription(
                Odometry, "odom", self._on_odometry, _qos(50, reliable_odom)
            ),
        }

    def _stop(self) -> None:
        for subscription in self._subscribed.values():
            self.destroy_subscription(subscription)
        self._subscribed = {}
        if self._worker is not None and not self._worker.stop():
            self.get_logger().warning("a frame is still being inferred and was left behind")
        self._worker = self._inputs = None

    def _release(self) -> None:
        self._stop()
        for publisher in self._outputs.values():
            self.destroy_lifecycle_publisher(publisher)
        self._outputs = {}
        self._pipeline = None

    def _on_image(self, message: Image) -> None:
        self._statistics.received()
        try:
            check_image(message)
        except MessageError as error:
            self._refuse(error.cause, error.text)
            return
        if self._inputs is not None:
            self._inputs.put_image(message)

    def _on_odometry(self, message: Odometry) -> None:
        linear = message.twist.twist.linear
        speed = math.hypot(linear.x, linear.y, linear.z)
        if self._inputs is None or self._inputs.put_speed(stamp_ns(message.header.stamp), speed):
            return
        self._refuse("bad_odometry", f"the odometry's speed is {speed}")

    def _on_set_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        settings, answer = parameters.changed(
            parameters.current_values(self), changes, self._lifecycle
        )
        if settings is None:
            return answer
        forced = settings.force_model == "multi_frame"
        if forced and self._pipeline is not None and not self._has_multi_frame():
            reason = f"bundle {settings.bundle} has no multi-frame network to force"
            return SetParametersResult(successful=False, reason=reason)
        self.settings = settings
        if self._worker is not None:
            self._worker.reconfigure(settings)
        return answer

    def _has_multi_frame(self) -> bool:
        return self._pipeline is not None and self._pipeline.networks.has_multi_frame

    def _refuse(self, cause: str, text: str) -> None:
        count = self._statistics.refused(cause, text)
        # A camera that always sends the same wrong thing must not fill the log: 1, 10, 100, ...
        if math.log10(count).is_integer():
            self.get_logger().warning(f"frame refused ({cause}, {count} so far): {text}")

    def _publish(self, header: Any, info: CameraInfo, result: DepthResult) -> None:
        """Called by the worker: the model first, so that whoever sees depth knows whose it is."""
        model = result.active_model
        if result.error is not None:
            self._model_error = result.error
        if model != self._active_model:
            self._active_model = model
            self._outputs["model"].publish(String(data=model))
        info.header = header
        self._outputs["info"].publish(info)
        self._outputs["depth"].publish(depth_to_image(result.depth, header))

    def _heard(self, name: str) -> int:
        """How many publishers of an input this node is connected to."""
        subscription = self._subscribed[name]
        if hasattr(subscription, "get_publisher_count"):
            return int(subscription.get_publisher_count())
        return int(self.count_publishers(name))  # Humble: those that exist, connected or not

    def _publish_diagnostics(self) -> None:
        model, _, reason = self._active_model.partition(" ")
        backend = self._pipeline.networks.backend if self._pipeline else None
        state = {
            "state": self._lifecycle,
            "bundle": self.settings.bundle,
            "backend": backend.name if backend else "",
            "device": backend.device if backend else "",
            "active_model": model,
            "reason": reason,
            "model_error": self._model_error,
            **{f"publishers.{name}": str(self._heard(name)) for name in self._subscribed},
            **{
                f"subscribers.{name}": str(publisher.get_subscription_count())
                for name, publisher in self._outputs.items()
            },
        }
        report = self._statistics.report(state)
        message = to_message(
            report, f"{self.get_fully_qualified_name().lstrip('/')}: depth", self.settings.bundle
        )
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)


def _apply_settings(pipeline: DepthPipeline, settings: parameters.Settings) -> None:
    from depth_prior_ros.ros.loading import apply_settings

    apply_settings(pipeline, settings)


def run(args: list[str] | None = None) -> int:
    """Run the node until the context is shut down; returns the exit code.

    Raises:
        KeyboardInterrupt: for SIGINT, and for SIGTERM before the node spins.
    """
    node = None
    try:
        # rclpy turns SIGTERM into a wake-up of the executor. While the bundle is being loaded there
        # is none to wake: until then it interrupts as SIGINT does.
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        node = DepthNode()
        if not node.settings.autostart:
            node.get_logger().info("autostart is off: waiting to be configured")
        elif not node.start():
            return 1
        install_signal_handlers(SignalHandlerOptions.ALL)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        executor.spin()
    except ExternalShutdownException:
        return 0
    except (ValueError, ParameterException) as error:
        print(f"depth_node: {error}", file=sys.stderr)
        return 1
    finally:
        if node is not None:
            node.destroy_node()
        # Not rclpy.shutdown: a signal has already shut the context down.
        rclpy.try_shutdown()
    return 0
