#!/bin/bash
# Arguments of depth.launch.py, or a command of its own: docker run ... ros2 topic list
set -e
source "/opt/ros/${ROS_DISTRO}/setup.bash"
source /ws/install/setup.bash
case "${1:-}" in
  "" | *:=*) exec ros2 launch depth_prior_ros depth.launch.py "$@" ;;
  *) exec "$@" ;;
esac
