# The commands of the project; each says in one line what it does. `make help` lists them.

PYTHON ?= python3
# Elsewhere than on the build machines torch may be wanted from another index, for example the CPU builds.
TORCH_INDEX ?=
DOCKER ?= docker
SERVE := .venv/serve
DEV := .venv/dev

.PHONY: help serve train test test-all test-service check bench soak image lock clean

help: ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

serve: $(SERVE)/ready ## serve the models in models/ at http://127.0.0.1:8000 (no torch is installed)
	$(SERVE)/bin/vae-serve --access-log

train: $(DEV)/ready ## train on scikit-learn's digits and publish the next version of models/digits
	$(DEV)/bin/vae-train fit

test: $(DEV)/ready ## all tests that need pip only
	$(DEV)/bin/python -m pytest -m "not heavy"

test-service: $(SERVE)/ready ## the service alone, in an environment that has no torch and no client
	$(SERVE)/bin/python tests/service_alone.py

# -rP shows the sizes and times that the tests print.
test-all: test test-service ## every test; from apt-get: buildah, debootstrap (and root) for the images, haproxy, chromium
	$(DEV)/bin/python -m pytest -m heavy -rP

check: $(DEV)/ready ## ruff and mypy --strict
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/mypy

bench: $(DEV)/ready ## the service beside raw onnxruntime and other servers: ten minutes on an idle machine
	$(DEV)/bin/python -m benchmarks.serving

soak: $(DEV)/ready ## ten minutes at twice the load that is admitted, every answer compared
	$(DEV)/bin/python -m benchmarks.soak

image: ## build the service's container image
	$(DOCKER) build --target service -t vaeserve .

lock: $(DEV)/ready ## refresh deploy/*.lock, what the images install, from pyproject.toml
	$(DEV)/bin/python deploy/lock.py

clean: ## remove the environments
	rm -rf .venv

# A stamp file in each environment: it is made again when the dependencies change.
$(SERVE)/ready: pyproject.toml
	$(PYTHON) -m venv $(SERVE)
	$(SERVE)/bin/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(DEV)/ready: pyproject.toml
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e '.[dev]'
	touch $@
