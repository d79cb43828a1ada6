# depth_node on an NVIDIA GPU. From the root of this repository:
#   docker build -f docker/cuda.Dockerfile -t depth_prior_ros:cuda .
#   docker run --rm --gpus all --net=host --ipc=host depth_prior_ros:cuda camera:=/front odom:=/odom
# docs/release.md says what was tried of it.
ARG ROS_DISTRO=jazzy
FROM ros:${ROS_DISTRO}-ros-base

ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1 DEBIAN_FRONTEND=noninteractive
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

RUN apt-get update && apt-get install -y --no-install-recommends \
      python3-pip python3-colcon-common-extensions \
      "ros-${ROS_DISTRO}-rmw-fastrtps-cpp" "ros-${ROS_DISTRO}-tf2-msgs" \
      "ros-${ROS_DISTRO}-shape-msgs" "ros-${ROS_DISTRO}-visualization-msgs" \
      "ros-${ROS_DISTRO}-diagnostic-msgs" "ros-${ROS_DISTRO}-nav-msgs" \
    && rm -rf /var/lib/apt/lists/*

# Dependencies first: a change of the code does not load them again. numpy stays the one that ROS was
# built with. --ignore-installed: pip cannot remove what apt has installed.
# PyTorch's wheels bring CUDA's libraries; the host needs the driver and its container toolkit.
ARG TORCH_INDEX=""
COPY requirements.txt /tmp/requirements.txt
RUN NUMPY="numpy==$(python3 -c 'import numpy; print(numpy.__version__)')" \
    && pip install "torch>=2.1" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
    && pip install --ignore-installed PyYAML -r /tmp/requirements.txt \
      "setuptools<80" "$NUMPY"

COPY . /ws/src/depth_prior_ros
RUN source "/opt/ros/${ROS_DISTRO}/setup.bash" && cd /ws \
    && colcon build --packages-select depth_prior_ros && rm -rf build log

# The camera driver's process and this one meet in shared memory: --ipc=host.
COPY docker/entrypoint.sh /entrypoint.sh
ENTRYPOINT ["/bin/bash", "/entrypoint.sh"]
