# make demo and make test each do all the set-up they need, on a machine with Python 3.11 or newer.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEPLOYED := $(VENV)/.installed-deploy

help:  ## show this
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: $(INSTALLED)  ## train digits with SGD, SAM and SAMPa through the service, and compare (SEEDS=3 for three seeds)
	$(RUN)/python -m sampa.api.demo --seeds $(or $(SEEDS),1)

test: $(INSTALLED) lint  ## the tests, cheapest first
	$(RUN)/python -m pytest -m 'not long' --ignore tests/deploy

test-long: $(INSTALLED)  ## those with a real Ray that take a minute or more each
	$(RUN)/python -m pytest -m long --ignore tests/deploy

test-deploy: $(DEPLOYED)  ## the manifests of deploy/, judged without a cluster; the CRDs of KubeRay in ../shared/kuberay-crds
	$(RUN)/python -m pytest -rs tests/deploy

lint: $(INSTALLED)  ## format, lint and types
	$(RUN)/ruff format --check api service workers tests
	$(RUN)/ruff check api service workers tests
	@mkdir -p build/types/sampa && for part in api service workers; do ln -sfn ../../../$$part build/types/sampa/$$part; done
	cd build/types && ../../$(RUN)/mypy --config-file ../../pyproject.toml -p sampa.api -p sampa.service -p sampa.workers

bench: $(INSTALLED)  ## what a step costs; writes a dated file beside the benchmark
	$(RUN)/python -m tests.benchmarks.bench_step --out tests/benchmarks/answers/step-$$(date +%F).md

bench-elastic: $(INSTALLED)  ## what it costs when workers come and go; likewise
	$(RUN)/python -m tests.benchmarks.bench_elastic --out tests/benchmarks/answers/elastic-$$(date +%F).md

bench-methods: $(INSTALLED)  ## accuracy, gradients and time of every method; likewise (about an hour)
	$(RUN)/python -m tests.benchmarks.bench_methods --out tests/benchmarks/answers/methods-$$(date +%F).md

bench-sweep: $(INSTALLED)  ## a sweep against plain Ray Tune; likewise
	$(RUN)/python -m tests.benchmarks.bench_sweep --out tests/benchmarks/answers/sweep-$$(date +%F).md

bench-leak: $(INSTALLED)  ## what plain Ray Tune leaves behind of trials that are stopped early; likewise
	$(RUN)/python -m tests.benchmarks.bench_leak --out tests/benchmarks/answers/leak-$$(date +%F).md

bench-metrics: $(INSTALLED)  ## what GET /metrics costs with many jobs; likewise
	$(RUN)/python -m tests.benchmarks.bench_metrics --out tests/benchmarks/answers/metrics-$$(date +%F).md

install: $(INSTALLED)  ## the virtual environment

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("sampa needs Python 3.11 or newer; set PYTHON=...") if sys.version_info < (3, 11) else None'
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)

# promtool is in Debian's package prometheus, from which it is taken without installing it, since that starts a service;
# where there is no apt-get, put a promtool on the PATH.
$(DEPLOYED): $(INSTALLED)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[deploy]'
	@command -v promtool >/dev/null || test -x build/tools/promtool || $(MAKE) --no-print-directory build/tools/promtool
	touch $(DEPLOYED)

build/tools/promtool:
	@command -v apt-get >/dev/null || { echo "test-deploy needs promtool on the PATH: install Prometheus" >&2; exit 1; }
	mkdir -p build/tools/prometheus
	cd build/tools/prometheus && (apt-get download prometheus || { apt-get update && apt-get download prometheus; })
	cd build/tools/prometheus && dpkg-deb --extract prometheus_*.deb . && mv usr/bin/promtool ..
	rm -r build/tools/prometheus

clean:  ## remove what was built
	rm -rf $(VENV) build *.egg-info

.PHONY: help demo test test-long test-deploy lint bench bench-elastic bench-methods bench-sweep bench-leak bench-metrics install clean
