# The static executable: building, checking, installing and releasing it. Included by Makefile.

ARCH ?= amd64
EXECUTABLE := dist/mycelium-cni-linux-$(ARCH)
IMAGE := dist/mycelium-cni-image-$(ARCH).tar
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' src/mycelium_cni/cni/errors.py)
EMBEDDED := $(wildcard launcher/*.[ch] launcher/*.ld launcher/*.py launcher/*.txt) LICENSE \
	$(wildcard launcher/instead/*.py launcher/instead/*/*.py) \
	$(shell find src -type f -not -name '*.pyc')
EMBEDDED := $(filter-out launcher/arm64vm.py launcher/apt-arm64vm.txt,$(EMBEDDED))
EMULATED_arm64 := /usr/bin/qemu-aarch64-static

.PHONY: dist dist-check build install image release test-dist test-arm64 test-arm64-kernel budget

dist: $(EXECUTABLE) ## build the static executable (ARCH=arm64: for arm64)

build: dist ## the same, under the name the host-daemon plugin has for it

dist/mycelium-cni-linux-%: $(EMBEDDED) | venv
	scripts/apt-ensure launcher/apt-$*.txt
	$(VENV)/bin/python launcher/build.py --arch $*
	@# What was just built must start, if need be under an emulator.
	CNI_COMMAND=VERSION $(EMULATED_$*) $@ </dev/null

dist-check: dist ## fail when the archive has a newer version of anything linked in
	$(VENV)/bin/python launcher/drift.py $(EXECUTABLE).cdx.json

install: dist ## `mycelium-cni install` (CONFIG has its options; CNI_BIN_DIR, CNI_CONF_DIR, DESTDIR)
	$(EXECUTABLE) install $(if $(DESTDIR),--root $(DESTDIR)) $(CONFIG) \
		$(if $(CNI_BIN_DIR),--bin-dir $(DESTDIR)$(CNI_BIN_DIR)) \
		$(if $(CNI_CONF_DIR),--conf-dir $(DESTDIR)$(CNI_CONF_DIR))

image: dist ## a container image of it, as an archive
	podman build --quiet --platform linux/$(ARCH) --build-arg TARGETARCH=$(ARCH) \
		--file deploy/Containerfile --tag localhost/mycelium-cni:$(VERSION) dist
	podman save --quiet --output $(IMAGE).new localhost/mycelium-cni:$(VERSION)
	mv $(IMAGE).new $(IMAGE)

release: dist/mycelium-cni-linux-amd64 dist/mycelium-cni-linux-arm64 ## all that is published
	$(VENV)/bin/python launcher/package.py

test-dist: venv test-packages dist/mycelium-cni-linux-amd64 ## the executable itself, its budget
	$(PYTEST) tests/dist tests/fence

budget: venv test-packages dist/mycelium-cni-linux-amd64 ## record what a call costs now
	MYCELIUM_CNI_RECORD_BUDGET=1 $(VENV)/bin/pytest -q tests/fence/test_budget.py

# qemu-user does not pass on NS_GET_NSTYPE and RTM_NEWLINKPROP, and knows no netfilter: what needs a
# pod is left to the next target.
test-arm64: venv test-packages dist/mycelium-cni-linux-arm64 ## protocol tests under qemu-user
	MYCELIUM_CNI_COMMAND='$(EMULATED_arm64) $(CURDIR)/dist/mycelium-cni-linux-arm64' \
		$(PYTEST) @tests/dist/emulator-cannot.txt tests/protocol

test-arm64-kernel: venv dist/mycelium-cni-linux-arm64 ## the rest of them, on Debian's arm64 kernel
	scripts/apt-ensure launcher/apt-arm64vm.txt
	$(VENV)/bin/python launcher/arm64vm.py
