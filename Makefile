# `make help` lists these commands.

PYTHON ?= python3
# An extra package index for torch, for example the one with its CPU builds.
TORCH_INDEX ?=
DOCKER ?= docker
# A checkout of another version of vaeserve, which `make bench` then compares with this one.
AGAINST ?=
SERVE := .venv/serve
DEV := .venv/dev

.PHONY: help serve train test test-all test-service check bench soak image lock clean

help: ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

serve: $(SERVE)/ready ## serve the models in models/ at http://127.0.0.1:8000 (does not install torch)
	$(SERVE)/bin/vae-serve --access-log

train: $(DEV)/ready ## train on scikit-learn's digits and publish the next version of models/digits
	$(DEV)/bin/vae-train fit

test: $(DEV)/ready ## run all tests that need only pip
	$(DEV)/bin/python -m pytest -m "not heavy"

test-service: $(SERVE)/ready ## test the service in an environment without torch and the client
	$(SERVE)/bin/python tests/service_alone.py

# -rP shows the sizes and times that the tests print.
test-all: test test-service ## run every test; needs buildah, debootstrap, haproxy and chromium from apt-get, and root
	$(DEV)/bin/python -m pytest -m heavy -rP

check: $(DEV)/ready ## run ruff and mypy --strict
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/mypy

bench: $(DEV)/ready ## compare the service with raw onnxruntime and other servers; takes ten minutes
	$(DEV)/bin/python -m benchmarks.serving $(if $(AGAINST),--only --against $(AGAINST))

soak: $(DEV)/ready ## run twice the admitted load for ten minutes and compare every answer
	$(DEV)/bin/python -m benchmarks.soak

image: ## build the service's container image
	$(DOCKER) build --target service -t vaeserve .

lock: $(DEV)/ready ## refresh deploy/*.lock, which the images install, from pyproject.toml
	$(DEV)/bin/python deploy/lock.py

clean: ## remove the environments
	rm -rf .venv

# The stamp file `ready` rebuilds an environment when the dependencies change.
$(SERVE)/ready: pyproject.toml
	$(PYTHON) -m venv $(SERVE)
	$(SERVE)/bin/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(DEV)/ready: pyproject.toml
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e '.[dev]'
	touch $@
