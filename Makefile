# Knarr's build. One set of flags for everything, so that the cache is shared.
export CGO_ENABLED := 1
export GOFLAGS := -trimpath -buildvcs=false -tags=netgo,osusergo,sqlite_omit_load_extension,grpcnotrace,bundle
export SHELL := /bin/bash

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT  := $(shell git rev-parse HEAD 2>/dev/null)
# The commit's time, so that two builds of one commit are the same bytes.
DATE    := $(shell TZ=UTC0 git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null || echo 1970-01-01T00:00:00Z)
KUBE    := v1.36.4+knarr1
PKG     := github.com/knarr-dev/knarr/pkg/version
LDFLAGS := -s -w -buildid= -linkmode external -extldflags -static \
	-X $(PKG).knarr=$(VERSION) -X $(PKG).commit=$(COMMIT) -X $(PKG).buildDate=$(DATE) \
	$(foreach p,k8s.io/component-base/version k8s.io/client-go/pkg/version,\
	-X $(p).gitVersion=$(KUBE) -X $(p).gitMajor=1 -X $(p).gitMinor=36 -X $(p).gitTreeState=clean \
	-X $(p).gitCommit=$(COMMIT) -X $(p).buildDate=$(DATE))

.PHONY: all build deps bundle images csi run test bench bench-store lint clean cross test-cross test-vm chaos cuts soak scale test-s3 long certificates rules vuln fuzz
all: build

deps:
	@scripts/deps.sh

bundle: deps
	@scripts/bundle.sh

images: deps
	@scripts/images.sh

# A CSI driver and its sidecars, from their own modules.
csi: deps
	@scripts/images.sh -csi

# crictl can't be linked in, and would make the executable a sixth larger.
.PHONY: dist/knarr-crictl
dist/knarr-crictl: bundle
	@scripts/bundle.sh -tool crictl -o $@

# The linker warns that parts of glibc would load others at run time; the tags
# keep those parts from being called.
OUT := dist/knarr
build: bundle dist/knarr-crictl
	@echo building $(OUT)
	@go build -ldflags '$(LDFLAGS)' -o $(OUT) ./cmd/knarr 2>&1 | { grep -v -e 'statically linked applications' -e 'in function' -e '^#' || true; }; exit $${PIPESTATUS[0]}

# The container image, with neither Docker nor a registry: docker load takes it.
# Those for other machines, once `make cross` has built their executables.
IMAGE := docker.io/knarr/knarr:$(VERSION)
.PHONY: image
image: build
	@scripts/container.sh $(IMAGE)

# Other machines: dist/knarr-arm64, and dist/knarr-arm for ARMv7. Cold, each takes
# as long as the first build of all; none is part of CI.
CROSS     := arm64 arm
CC_arm64  := aarch64-linux-gnu-gcc
CC_arm    := arm-linux-gnueabihf-gcc
# GNU's default linker forgets that glibc's choosers of functions are Thumb code
# once they are too far away for a call, and the executable crashes at once.
LD_arm    := -fuse-ld=gold
QUIET     := grep -v -e 'statically linked applications' -e 'in function' -e '^\#' || true
CROSS_ENV  = GOOS=linux GOARCH=$* GOARM=7 CC=$(CC_$*)
CROSS_LINK = -extldflags "-static $(LD_$*)"
OVERLAY    = -overlay build/cross/$*/overlay.json

cross: $(addprefix cross-,$(CROSS))
cross-%:
	@scripts/deps.sh cross
	@scripts/cross.sh $*
	@echo building dist/knarr-$*
	@$(CROSS_ENV) go build $(OVERLAY) -ldflags '$(LDFLAGS) $(CROSS_LINK)' -o dist/knarr-$* ./cmd/knarr 2>&1 | { $(QUIET); }; exit $${PIPESTATUS[0]}

# By qemu's emulator of one process: the store's own tests and those of what is
# near the machine, then the whole executable. It knows no packet filter's socket.
EMULATED := ./pkg/datastore ./pkg/bundle ./pkg/bundle/ocitar ./pkg/config ./pkg/component ./pkg/pki
test-cross: build cross $(addprefix test-cross-,$(CROSS))
	@KNARR_CROSS='$(CROSS)' $(RECORD) 'test-cross: the executable on $(CROSS)' go test -count=1 -timeout 90m -v ./tests/cross
test-cross-%:
	@$(CROSS_ENV) $(RECORD) 'test-cross: packages on $*' go test $(OVERLAY) -ldflags '-linkmode external $(CROSS_LINK)' -count=1 -timeout 60m -exec '$(CURDIR)/scripts/emulate.sh $*' \
		-skip 'TestBundledNFT|TestBundledProgramsRun/bin/nft' $(EMULATED)

# A virtual machine of Debian 12: systemd, cgroup v2, reboots, a clock to set.
# The result goes into docs/testing.md.
test-vm: build images image
	@scripts/deps.sh vm
	KNARR_VM=1 go test -count=1 -timeout 180m -v ./tests/vm -into $(CURDIR)/docs/testing.md $(ARGS)

# What install.sh and `knarr upgrade` fetch, in dist/release: of this architecture,
# and of those that `make cross` built. RELEASE_KEY=FILE signs it.
.PHONY: release
release: build image
	@go build -o build/knarr-sbom ./cmd/knarr-sbom
	@scripts/release.sh

# What links all of Kubernetes is vetted but not raced: a race build of it is
# another cold build of many minutes.
RACE := ./pkg/throwaway/userns ./pkg/archive ./pkg/scratch ./pkg/throwaway/nat ./pkg/component ./pkg/durable ./pkg/status ./pkg/sdnotify ./pkg/bundle/... ./pkg/datastore/... ./pkg/node/nftwatch ./pkg/token ./pkg/join ./pkg/dial ./pkg/loadbalancer ./pkg/service ./pkg/addons/registry ./pkg/release ./pkg/upgrade ./pkg/tunnel ./pkg/edge/... ./pkg/controlplane/membership ./pkg/pidone ./pkg/throwaway/imagecache ./tests/chaos/record ./tests/chaos/flakydisk

# ARGS=--once ends by itself.
run: build images
	dist/knarr run --image-archive build/images/test.tar -- scripts/demo.sh $(ARGS)

bench: build images
	go run ./tests/bench --into BENCHMARKS.md $(ARGS)

# The store alone, beside etcd and kine's driver: 20 minutes, and 4 GB of disk.
bench-store: deps
	go run ./tests/bench/store --into BENCHMARKS.md $(ARGS)

lint: deps bundle
	@test -z "$$(gofmt -l cmd pkg tests examples)" || { gofmt -l cmd pkg tests examples; echo 'run gofmt -w on these'; exit 1; }
	shellcheck scripts/*.sh install.sh .ci/run
	go vet ./...
	go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

test: build images csi image
	go test -race $(RACE)
	$(STEADY) --packages "$$(go list ./... | grep -v $(NODE_TESTS:%=-e '/%$$'))" -- -timeout 40m
	$(STEADY) --packages '$(NODE_TESTS:%=./%)' -- -timeout 40m

# These run nodes, and of nodes there is one test at a time on the machine.
NODE_TESTS := tests/e2e tests/lifecycle tests/cluster tests/chaos tests/throwaway tests/container tests/embedding

# Real control planes and nodes with hundreds of pods on two busy cores: what
# fails is tried once more by itself, and shown; it has to pass then.
STEADY := go run gotest.tools/gotestsum@v1.13.0 --format pkgname-and-test-fails --rerun-fails=1 --rerun-fails-max-failures=6

# Of what runs outside of CI the last result stands in docs/testing.md.
RECORD := scripts/record.sh docs/testing.md

# Faults. CI runs a few rounds of each; ARGS=-seed=N repeats what chance chose.
ROUNDS ?= 200
chaos: build images
	@$(RECORD) 'chaos: a store, $(ROUNDS) SIGKILLs and a failing disk' go test -count=1 -timeout 60m -v -skip PowerCuts ./tests/chaos/storeload -rounds $(ROUNDS) $(ARGS)
	@$(RECORD) 'chaos: a node, every fault; the control plane, a third of the SIGKILLs' go test -count=1 -timeout 180m -v ./tests/chaos -all -rounds $$(($(ROUNDS)/3)) $(ARGS)

# A hundred power cuts of the store alone, twenty of a control plane.
cuts: build images
	@$(RECORD) 'cuts: a store, 100 power cuts' go test -count=1 -timeout 60m -v -run PowerCuts ./tests/chaos/storeload -cuts 100 $(ARGS)
	@$(RECORD) 'cuts: a control plane, 20 power cuts' go test -count=1 -timeout 60m -v -run PowerCuts ./tests/chaos -all -cuts 100 $(ARGS)

# The curve goes into docs/testing.md.
HOURS ?= 1
soak: build images
	go test -count=1 -timeout 0 -v -run 'TestSoak$$' ./tests/chaos -soak $(HOURS)h -soak-into $(CURDIR)/docs/testing.md

# A node without its server for ten minutes.
.PHONY: away
away: build images
	@$(RECORD) 'away: a node without its server for ten minutes' go test -count=1 -timeout 30m -v -run 'TestServerIsAway$$' ./tests/cluster -away 10m

# A server with 512 MiB of memory, an agent with 256, for ten minutes.
.PHONY: small
small: build images
	@$(RECORD) 'small: a server with 512 MiB and an agent with 256' go test -count=1 -timeout 30m -v -run 'TestSmallMachines$$' ./tests/cluster -small 10m

# What importers compile against, compared with the last release or with BASE.
.PHONY: apidiff
apidiff:
	@scripts/apidiff.sh $(BASE)

# Hollow nodes against one real server; the figures go into docs/scale.md.
NODES ?= 200
scale: build images
	go test -count=1 -timeout 60m -v ./tests/scale -nodes $(NODES) -into $(CURDIR)/docs/scale.md $(ARGS)

# Backups in a bucket, by a real server of S3, which takes minutes to build.
test-s3:
	@scripts/s3.sh
	@$(RECORD) 'test-s3: backups in a bucket' go test -count=1 -v -run 'Bucket|S3' ./pkg/backup

# Ten lives of a server's certificates, a minute each.
certificates: build images
	@$(RECORD) 'certificates: ten lives of a minute' go test -count=1 -timeout 30m -v -run CertificatesRenew ./tests/lifecycle -life 1m -lives 10

# The alert rules in contrib, by Prometheus' own tool.
rules:
	@scripts/deps.sh rules
	@$(RECORD) 'rules: the alert rules, by promtool' promtool check rules contrib/prometheus/*.yaml

# Known vulnerabilities in what is linked in. CI reaches no database of them.
VULNDB ?= https://vuln.go.dev
vuln:
	go run golang.org/x/vuln/cmd/govulncheck@v1.1.4 -db $(VULNDB) ./cmd/knarr

# A minute for each parser of what strangers send.
fuzz:
	@$(RECORD) 'fuzz: a minute for each parser' scripts/fuzz.sh 1m

# A hundred clusters in a row, four at once, and fifty killed at any moment.
.PHONY: many
many: build images
	@$(RECORD) 'many: a hundred throwaway clusters, fifty killed' go test -count=1 -timeout 60m -v -run 'Many|Sweeps' ./tests/throwaway -many 100 $(ARGS)

# Test suites of others that use envtest, on Knarr. SUITES names some of them.
.PHONY: suites
suites: build
	@$(RECORD) 'suites: envtest of others$(if $(SUITES),: $(SUITES))' scripts/suites.sh $(SUITES)

# All that takes hours.
long: chaos cuts soak away small many suites test-cross test-s3 certificates rules fuzz

clean:
	rm -rf build dist
