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

.PHONY: all build deps bundle images run test bench lint clean
all: build

deps:
	@scripts/deps.sh

bundle: deps
	@scripts/bundle.sh

images: deps
	@scripts/images.sh

# The linker warns that parts of glibc would load others at run time; the tags
# keep those parts from being called.
OUT := dist/knarr
build: bundle
	@echo building $(OUT)
	@go build -ldflags '$(LDFLAGS)' -o $(OUT) ./cmd/knarr 2>&1 | { grep -v -e 'statically linked applications' -e 'in function' -e '^#' || true; }; exit $${PIPESTATUS[0]}

# What links all of Kubernetes is vetted but not raced: a race build of it is
# another cold build of many minutes.
RACE := ./pkg/component ./pkg/status ./pkg/sdnotify ./pkg/bundle/... ./pkg/datastore ./pkg/node/nftwatch

# ARGS=--once ends by itself.
run: build images
	dist/knarr internal demo $(ARGS)

bench: build images
	go run ./tests/bench --into BENCHMARKS.md $(ARGS)

lint: deps bundle
	@test -z "$$(gofmt -l cmd pkg tests)" || { gofmt -l cmd pkg tests; echo 'run gofmt -w on these'; exit 1; }
	shellcheck scripts/*.sh .ci/run
	go vet ./...
	go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

test: build images
	go test -race $(RACE)
	go test -timeout 40m ./...

clean:
	rm -rf build dist
