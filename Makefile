# netssmd on a fresh Debian or Ubuntu machine with Python and a C++ compiler:
#
#   make run     the daemon on the embedded model, in the foreground     make run ARGS="--duration 20s"
#   make test    everything the tests need, then the tests               make test PYTEST_ARGS="-k pcap"
#   make setup   only the virtual environment and the package in it (editable; run it again after editing compiled sources)
#   make check   ruff and mypy         make bench   packets a second here         make clean   forget .venv and build
#   make install-service   the daemon in /opt/netssmd and its systemd units, as root (docs/operating.md)
#
# Each step leaves a stamp in .venv, so that a second run starts at once.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PYTEST_ARGS ?=
PYTEST_WORKERS ?= 2

# The CPU build of this release is tried first: the newest torch brings gigabytes of CUDA along.
TORCH_PINNED = torch==2.13.0
TORCH_RANGE = torch>=2.4
BUILD_REQUIREMENTS = "scikit-build-core>=0.11" "nanobind>=2.4" "mypy[mypyc]>=1.15" "cmake>=3.26" "ninja>=1.11"
TEST_EXTRAS = train evaluate mqtt tap test
APT_BUILD_PACKAGES = python3-venv python3-dev

# Where install-service puts things. DESTDIR is a package builder's root: nothing outside it is touched then.
PREFIX ?= /opt/netssmd
PROGRAM ?= $(PREFIX)/bin/netssmd
DESTDIR ?=
UNITS ?= /etc/systemd/system
SERVICE_EXTRAS ?= mqtt,tap

SHELL = /bin/bash
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
STAMPS = $(VENV)/.stamps
APT_INSTALL = DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends
HAS_HEADERS = import sysconfig, os; os.stat(sysconfig.get_path("include") + "/Python.h")
CAN_APT = [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null

NATIVE_SOURCES = pyproject.toml CMakeLists.txt netssmd/freshness.py $(wildcard cmake/*) \
  $(wildcard netssmd/model/cpu/* netssmd/output/native/* netssmd/packet/native/*) $(wildcard $(shell grep -v '^\#' cmake/mypyc_modules.txt)) \
  $(wildcard netssmd/packet/*.py netssmd/codec/*.py)

.PHONY: setup run test check bench clean install-service install-program install-units
.DELETE_ON_ERROR:

setup: $(STAMPS)/package

run: $(STAMPS)/package
	@$(BIN)/python -c "import netssmd.model._cpu" 2>/dev/null || $(MAKE) --no-print-directory $(STAMPS)/torch
	@exec $(BIN)/netssmd run $(ARGS)

test: $(STAMPS)/package $(STAMPS)/test $(STAMPS)/programs
	NETSSMD_EXPECT_COMPILED=$$(command -v c++ >/dev/null && $(BIN)/python -c '$(HAS_HEADERS)' 2>/dev/null && echo 1) \
	  $(BIN)/python -m pytest -q -n $(PYTEST_WORKERS) $(PYTEST_ARGS)

check: $(STAMPS)/package $(STAMPS)/dev
	$(BIN)/ruff check netssmd tests tools cmake
	$(BIN)/mypy

bench: $(STAMPS)/package
	$(BIN)/netssmd bench $(ARGS)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

install-service: install-program install-units
	@[ -n "$(DESTDIR)" ] || systemd-sysusers netssmd.conf
	@[ -n "$(DESTDIR)" ] || systemd-tmpfiles --create netssmd.conf
	@[ -n "$(DESTDIR)" ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload
	@echo "netssmd: edit /etc/netssmd/netssmd.toml, then: systemctl enable --now netssmd"

install-program:
	$(PYTHON) -m venv $(DESTDIR)$(PREFIX)
	$(DESTDIR)$(PREFIX)/bin/python -m pip install -q --disable-pip-version-check "$(CURDIR)[$(SERVICE_EXTRAS)]"

# A configuration that is there already stays as it is. Its folder is closed to others by tmpfiles.conf.
install-units:
	install -d $(DESTDIR)$(UNITS) $(DESTDIR)$(PREFIX)/share/netssmd/drop-ins $(DESTDIR)/etc/netssmd
	for unit in netssmd.service netssmd@.service; do \
	  sed 's#/opt/netssmd/bin/netssmd#$(PROGRAM)#; s#/opt/netssmd#$(PREFIX)#' systemd/$$unit \
	    > $(DESTDIR)$(UNITS)/$$unit && chmod 644 $(DESTDIR)$(UNITS)/$$unit || exit 1; done
	install -D -m 644 systemd/sysusers.conf $(DESTDIR)/usr/lib/sysusers.d/netssmd.conf
	install -D -m 644 systemd/tmpfiles.conf $(DESTDIR)/usr/lib/tmpfiles.d/netssmd.conf
	install -m 644 systemd/drop-ins/*.conf $(DESTDIR)$(PREFIX)/share/netssmd/drop-ins
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/netssmd docs/operating.md docs/security.md
	[ -e $(DESTDIR)/etc/netssmd/netssmd.toml ] || install -m 644 config/netssmd.toml $(DESTDIR)/etc/netssmd/netssmd.toml

# --- the steps ---------------------------------------------------------------------------------------------------------

# Debian's python3 comes without venv and without headers.
$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "netssmd: needs Python 3.11 or newer, found $$($(PYTHON) --version 2>&1): make PYTHON=python3.12 ..."; exit 1; }
	@if ! $(PYTHON) -c 'import ensurepip; $(HAS_HEADERS)' 2>/dev/null; then \
	  if $(CAN_APT); then apt-get update -qq; $(APT_INSTALL) $(APT_BUILD_PACKAGES); fi || \
	  echo "netssmd: notice: could not install $(APT_BUILD_PACKAGES)"; fi
	@$(PYTHON) -m venv $(VENV) || { echo "netssmd: cannot make a virtual environment: install $(APT_BUILD_PACKAGES)"; exit 1; }
	@mkdir -p $(STAMPS)
	$(PIP) install -q $(BUILD_REQUIREMENTS)
	@touch $@

# The stamp is as old as the build's beginning: what is edited while it runs is built next time.
$(STAMPS)/package: $(STAMPS)/venv $(NATIVE_SOURCES)
	@touch $@.begun
	$(PIP) install -q --no-build-isolation -e .
	@$(BIN)/python cmake/say_what_was_built.py
	@mv $@.begun $@

$(STAMPS)/torch: | $(STAMPS)/venv
	$(PIP) install -q "$(TORCH_PINNED)" || \
	  { echo "netssmd: notice: no $(TORCH_PINNED) here, taking what $(TORCH_RANGE) gives"; $(PIP) install -q "$(TORCH_RANGE)"; }
	@touch $@

# pip would build the package again to install its extras: their requirements are read from pyproject.toml instead.
$(STAMPS)/test: pyproject.toml tools/extras.py $(STAMPS)/torch
	$(BIN)/python tools/extras.py $(TEST_EXTRAS) > $(STAMPS)/test.txt
	$(PIP) install -q -r $(STAMPS)/test.txt
	@touch $@

$(STAMPS)/dev: pyproject.toml tools/extras.py $(STAMPS)/venv
	$(BIN)/python tools/extras.py dev test > $(STAMPS)/dev.txt
	$(PIP) install -q -r $(STAMPS)/dev.txt
	@touch $@

$(STAMPS)/programs: tools/test_programs.sh | $(STAMPS)/venv
	@tools/test_programs.sh
	@touch $@
