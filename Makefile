# kiln. 'make' lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

ARCH := amd64
FLAVOUR := cloud
FIRMWARE := uefi
FUZZTIME := 30s
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.6.1
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)

# One directory for each architecture.
OUT := $(if $(filter amd64,$(ARCH)),out,out/$(ARCH))
ARM64 := out/arm64
DEBS := $(OUT)/debs
KILN := bin/kiln
PROGRAM := $(OUT)/kiln
RECIPE := rootfs/recipe.yaml
BASE := $(OUT)/base
# Without containerd: half the size, so that the tests' many boots are quick.
MINIMAL := $(OUT)/minimal
BASE_GENERIC := $(OUT)/base-generic
KIT := $(OUT)/kit
EXTENSION := $(OUT)/wireguard
KUBERNETES := $(OUT)/kubernetes
IMAGE := $(OUT)/kiln-metal-$(ARCH).raw
IMAGE_4K := $(OUT)/kiln-metal-4k-$(ARCH).raw
TEST_IMAGE := $(OUT)/test/metal.raw
TEST_IMAGE_4K := $(OUT)/test/metal-4k.raw

export CGO_ENABLED := 0
export GOTOOLCHAIN := local

# The kernels' packages, for the shell: the generic flavour has no name of its own.
kernel_cloud = $$(compgen -G '$(DEBS)/linux-image-*-cloud-$(ARCH)_*.deb')
kernel_generic = $$(compgen -G '$(DEBS)/linux-image-*-$(ARCH)_*.deb' | grep -v -e -cloud-)
kernel = $(kernel_$(FLAVOUR))

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# $(call build_kiln,ENVIRONMENT,FILE)
build_kiln = $(1) go build -trimpath -tags grpcnotrace -ldflags '-s -w -X main.version=$(VERSION)' -o $(2) ./cmd/kiln

# --- What an image is made of

.PHONY: deps
deps: ## install the Debian packages that building and testing needs
	@ARCH=$(ARCH) rootfs/userland/deps.sh

.PHONY: fetch
fetch: deps ## download kernel, boot loaders and libraries as Debian packages
	@ARCH=$(ARCH) rootfs/userland/fetch.sh $(DEBS) $(FLAVOUR)

.PHONY: userland
userland: fetch ## build what is written in C against musl: e2fsprogs, iptables, libseccomp
	@ARCH=$(ARCH) rootfs/userland/sysroot.sh $(DEBS) $(OUT)/sysroot
	@ARCH=$(ARCH) rootfs/userland/e2fsprogs.sh $(OUT)/sysroot $(OUT)/userland
	@ARCH=$(ARCH) rootfs/userland/iptables.sh $(OUT)/sysroot $(OUT)/iptables

.PHONY: grub
grub: fetch ## build GRUB's images for BIOS, which only amd64 has
ifeq ($(ARCH),amd64)
	@rootfs/userland/grub-core.sh $(DEBS) $(OUT)/grub
endif

.PHONY: build
build: ## build bin/kiln
	@$(call build_kiln,,$(KILN))

.PHONY: generate
generate: ## make the Go files of the node's API from its protobuf definitions
	@api/v1alpha1/generate.sh

# --- Images

GRUB := $(if $(filter amd64,$(ARCH)),$(addprefix $(OUT)/grub/,core.img eltorito.img))

# $(call build_base,FLAVOUR,RECIPE,DIR)
define build_base
	@inputs=$$(sha256sum $(KILN) rootfs/*.yaml rootfs/etc/* $(OUT)/{userland,sysroot,iptables}.stamp $(GRUB) go.mod go.sum \
		rootfs/userland/*/go.{mod,sum} $$(find cmd api internal machine -name '*.go' | sort) && ls $(DEBS) && echo $(1) $(2) $(ARCH)); \
	if [[ -e $(3)/index.json && $$inputs == "$$(cat $(3).inputs 2>/dev/null)" ]]; then exit 0; fi; \
	$(KILN) base build --recipe $(2) --kernel $(kernel_$(1)) --packages $(DEBS) --tree $(OUT) \
		$(if $(GRUB),--grub-core $(word 1,$(GRUB)) --grub-cd $(word 2,$(GRUB))) --cache $(OUT)/cache --output $(3); \
	echo "$$inputs" >$(3).inputs
endef

.PHONY: base
base: build fetch userland grub ## build the base: kernel, root file system, boot loaders
	$(call build_base,$(FLAVOUR),$(RECIPE),$(BASE))

.PHONY: minimal
minimal: build fetch userland grub ## build a base without containerd, with which the tests boot
	$(call build_base,$(FLAVOUR),rootfs/minimal.yaml,$(MINIMAL))

.PHONY: extension
extension: base ## build the demonstration extension, with the module wireguard
	@$(KILN) extension build --name wireguard --version $$(sed -E 's/.*linux-image-([0-9.]+).*/\1/' <<<"$(kernel)") \
		--description 'WireGuard, a network tunnel' --module wireguard \
		--kernel $(kernel) --base $(BASE) --output $(EXTENSION) >/dev/null

.PHONY: kubernetes
kubernetes: base ## build the extension kubernetes: kubelet, kubeadm and kubectl
	@$(KILN) extension build --name kubernetes --version $$(sed -n 's/.*k8s.io\/kubernetes v//p' rootfs/userland/kubernetes/go.mod) \
		--description 'kubelet, kubeadm and kubectl' --license Apache-2.0 --recipe rootfs/kubernetes.yaml \
		--base $(BASE) --arch $(ARCH) --cache $(OUT)/cache --output $(KUBERNETES)

headers = $$(compgen -G '$(DEBS)/linux-headers-*$(if $(filter cloud,$(1)),-cloud)-$(ARCH)_*.deb' | $(if $(filter cloud,$(1)),cat,grep -v -e -cloud-))

.PHONY: kit
kit: base ## make the kernel kit, with which modules for the base's kernel are built
	@$(KILN) kernel kit --base $(BASE) --headers $(call headers,$(FLAVOUR)) --headers $$(compgen -G '$(DEBS)/linux-headers-*-common_*.deb') \
		--headers $$(compgen -G '$(DEBS)/linux-kbuild-*.deb') --output $(KIT)

.PHONY: compose
compose: extension
	@$(KILN) build metal --arch $(ARCH) --base $(BASE) --extension $(EXTENSION) --cache $(OUT)/cache --output $(IMAGE) >/dev/null

.PHONY: image
image: compose ## compose out/kiln-metal-amd64.raw, with the extension in it; ARCH=arm64
	@printf '%s, %s bytes, %s on disk\n' $(IMAGE) $$(stat -c %s $(IMAGE)) $$(du -h $(IMAGE) | cut -f 1)
	@printf 'sha256 %s\n\n' $$(sha256sum <$(IMAGE) | cut -d ' ' -f 1)
	@$(KILN) inspect $(IMAGE)
	@printf '\nmake run ARCH=$(ARCH) boots it in QEMU$(if $(GRUB),; with FIRMWARE=bios as a BIOS does).\n'
	@printf 'To put it on a disk: cp $(IMAGE) /dev/DISK, which overwrites what is there.\n'

.PHONY: image-4k
image-4k: extension ## compose out/kiln-metal-4k-amd64.raw, for disks with 4096-byte sectors
	@$(KILN) build metal-4k --arch $(ARCH) --base $(BASE) --extension $(EXTENSION) --cache $(OUT)/cache --output $(IMAGE_4K) >/dev/null
	@echo $(IMAGE_4K)

.PHONY: run
run: compose ## boot the image in QEMU, console in the terminal; FIRMWARE=bios or uefi
	@$(KILN) run $(IMAGE) --firmware $(FIRMWARE)

.PHONY: installer
installer: extension ## build out/kiln.installer.tar, an image for 'docker load' that installs onto disks
	@$(call build_kiln,GOARCH=$(ARCH),$(PROGRAM))
	@$(KILN) build installer --arch $(ARCH) --installer-program $(PROGRAM) --base $(BASE) --extension $(EXTENSION) --cache $(OUT)/cache --output $(OUT)/kiln.installer.tar

# --- Tests

# What the tests take from the environment, see internal/oracle and test.
test_env = KILN_REQUIRE_ORACLES=1 KILN_BIN=$(abspath $(KILN)) KILN_BASE=$(abspath $(MINIMAL)) KILN_BASE_CONTAINERS=$(abspath $(BASE)) \
	KILN_EXTENSION=$(abspath $(EXTENSION)) KILN_IMAGE=$(abspath $(TEST_IMAGE)) KILN_IMAGE_4K=$(abspath $(TEST_IMAGE_4K)) \
	KILN_BASE_ARM64=$(abspath $(ARM64)/minimal) KILN_EXTENSION_ARM64=$(abspath $(ARM64)/wireguard) \
	KILN_BASE_GENERIC=$(abspath $(BASE_GENERIC)) KILN_TEST_DEBS=$(abspath $(DEBS)) KILN_TEST_XEN=$(abspath $(OUT)/xen) KILN_TEST_KERNELS=$(abspath $(OUT)/kernels/cloud):$(abspath $(OUT)/kernels/generic)

.PHONY: fixtures
fixtures: extension minimal
	@$(if $(filter-out amd64,$(ARCH)),$(error the tests run on amd64, and build what they need for others; leave ARCH out))
	@$(MAKE) --no-print-directory ARCH=arm64 RECIPE=rootfs/minimal.yaml BASE=$(ARM64)/minimal extension
	@mkdir -p $(OUT)/test
	@$(KILN) build metal --base $(MINIMAL) --extension $(EXTENSION) --cache $(OUT)/cache --output $(TEST_IMAGE) >/dev/null
	@$(KILN) build metal-4k --base $(MINIMAL) --extension $(EXTENSION) --cache $(OUT)/cache --output $(TEST_IMAGE_4K) >/dev/null
	@ARCH=$(ARCH) rootfs/userland/fetch.sh $(DEBS) generic
	@rootfs/userland/fetch.sh $(OUT)/xen xen
	@for f in cloud="$(kernel_cloud)" generic="$(kernel_generic)"; do \
		dir=$(OUT)/kernels/$${f%%=*} deb=$${f#*=}; \
		if [[ $$(cat $$dir.unpacked 2>/dev/null) == "$$deb" ]]; then continue; fi; \
		rm -rf $$dir && mkdir -p $$dir && dpkg-deb -x "$$deb" $$dir && echo "$$deb" >$$dir.unpacked; \
	done
	$(call build_base,generic,rootfs/minimal.yaml,$(BASE_GENERIC))

.PHONY: lint
lint: deps ## check format and correctness of the source
	@unformatted=$$(git ls-files '*.go' | xargs gofmt -l); \
	if [[ -n $$unformatted ]]; then echo "gofmt -w is needed:"; echo "$$unformatted"; exit 1; fi
	@go vet ./...
	@go run $(STATICCHECK) ./...
	@for s in $$(git ls-files '*.sh' .ci/run test/unprivileged); do bash -n $$s; done

test_timeout = 70m

.PHONY: test
test: lint fixtures ## run all tests: as this user, and, as root, also as nobody without network
	$(test_env) go test -count=1 -timeout $(test_timeout) ./...
ifeq ($(shell id -u),0)
	@$(MAKE) --no-print-directory test-unprivileged
endif

# From a copy, if the checkout is closed to others.
.PHONY: test-unprivileged
test-unprivileged:
	@if setpriv --reuid=nobody --regid=nogroup --clear-groups test -r $(abspath go.mod); then \
		$(test_env) go test -count=1 -timeout 30m -short -exec $(abspath test/unprivileged) ./...; \
	else \
		copy=$$(mktemp -d) && trap 'rm -rf $$copy' EXIT && chmod 755 $$copy; \
		cp -r --sparse=always . $$copy/kiln && $(MAKE) --no-print-directory -C $$copy/kiln test-unprivileged; \
	fi

.PHONY: test-full
test-full: export KILN_TEST_FULL = 1
test-full: export KILN_KUBERNETES = $(abspath $(KUBERNETES))
test-full: test_timeout = 120m
test-full: kubernetes test ## run all tests, those that take long, race detector and fuzzing included
	CGO_ENABLED=1 $(test_env) go test -count=1 -timeout 40m -short -race ./...
	@$(MAKE) --no-print-directory fuzz

.PHONY: fuzz
fuzz: ## fuzz every parser for FUZZTIME
	@for dir in $$(git grep -lE '^func Fuzz' -- '*_test.go' | xargs -n 1 dirname | sort -u); do \
		for f in $$(go test -list '^Fuzz' ./$$dir | grep '^Fuzz'); do \
			echo "$$dir $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) ./$$dir; \
		done; \
	done

.PHONY: bench
bench: fixtures ## measure against the tools there are: cp, qemu-img, xorriso, zstd, mksquashfs, depmod, veritysetup
	$(test_env) go test -run '^$$' -bench . -benchtime 1x -timeout 40m -p 1 ./test ./rootfs/squashfs ./kernel/depmod \
		./imager/qcow2 ./imager/vmdk ./imager/vhd ./imager/vhdx ./imager/compress ./imager/iso ./imager/verity ./imager/install

.PHONY: clean
clean: ## remove everything that was downloaded and built
	rm -rf bin $(OUT)
