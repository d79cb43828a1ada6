# Everything below sets up .venv by itself. `make help` lists the targets.

PYTHON ?= python3
# Without a GPU, the CPU build of PyTorch is a tenth of the download: give its index, as PyTorch's
# installation page names it: make demo TORCH="torch==2.13.0 --index-url INDEX"
TORCH ?= torch==2.13.0
DEMO ?= demo
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin

# The ROS 2 wheels restart Python with their own library path and remember that in the
# environment. A shell inside another such environment must not pass it on to this one.
ifdef _ROS_WHEELS_BOOTSTRAP_COMPLETE
unexport _ROS_WHEELS_BOOTSTRAP_COMPLETE
unexport LD_LIBRARY_PATH
endif

# Hundreds of processes that tests start would each compile the same modules again.
unexport PYTHONDONTWRITEBYTECODE

# With ROS 2 sourced, .venv sees its packages; without, it gets ROS 2 from wheels. The two
# cannot share one .venv, so each has a stamp of its own.
ifneq ($(and $(ROS_DISTRO),$(AMENT_PREFIX_PATH)),)
ROS := $(ROS_DISTRO)
VENV_FLAGS := --system-site-packages
EXTRAS := cpu,render,dev
# The messages of ROS 2 were compiled against the system's numpy: keep its version.
CONSTRAINTS = $(VENV)/constraints.txt
else
ROS := wheels
VENV_FLAGS :=
EXTRAS := ros,cpu,render,dev
CONSTRAINTS = /dev/null
endif
STAMP := $(VENV)/.installed-$(ROS)

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint format parameters clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): setup.py setup.cfg requirements.txt package.xml
	@if [ "$(ROS)" != wheels ] && ! $(PYTHON) -c 'import rclpy'; then \
	  echo "ROS 2 $(ROS) is sourced, but $(PYTHON) cannot import rclpy. Choose the Python that it" \
	    "was built for (make PYTHON=/usr/bin/python3 ...), or use a shell without ROS 2." >&2; exit 1; fi
	@[ -e $@ ] || rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	@if [ "$(ROS)" != wheels ]; then \
	  $(PYTHON) -c 'import numpy; print("numpy==" + numpy.__version__)' > $(VENV)/constraints.txt; fi
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) $(TORCH)
	@# setuptools warns about every editable installation, in a dozen lines.
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP) ## replay the embedded drive through the node: demo/report.html, demo/metrics.json
	$(BIN)/depth_bag demo --out $(DEMO)

# Most of a test of the node is waiting for processes: five files side by side, on two cores, the
# longest first (test/conftest.py).
SIDE_BY_SIDE = --dist loadfile --no-loadscope-reorder

test: $(STAMP) ## all tests, the slow ones too
	$(BIN)/python -m pytest --slow -n $(or $(WORKERS),5) $(SIDE_BY_SIDE) $(PYTEST_ARGS)

# Without nodes nothing waits, and each worker imports and collects for itself: one for each core.
test-fast: $(STAMP) ## the tests that take seconds, and start no node
	$(BIN)/python -m pytest -m "not node" -n $(or $(WORKERS),2) $(SIDE_BY_SIDE) $(PYTEST_ARGS)

lint: $(STAMP) ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

parameters: $(STAMP) ## rewrite config/depth.yaml and docs/parameters.md from the declarations
	$(BIN)/python -m depth_prior_ros.ros.parameters.documents

clean: ## remove what runs and builds left behind, but not .venv
	rm -rf demo build install log dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find depth_prior_ros training rosbag_tools test launch -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove .venv as well
	rm -rf $(VENV)
