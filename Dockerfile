# Knarr's container image, for amd64, arm64 and arm:
#
#   docker buildx build --platform linux/amd64,linux/arm64,linux/arm/v7 -t knarr/knarr .
#
# The first build compiles all of Kubernetes, which takes minutes. `make image`
# makes the same image of this machine's processor without Docker.
FROM --platform=$BUILDPLATFORM golang:1.26-bookworm AS build
WORKDIR /src
COPY . .
ARG TARGETARCH
RUN --mount=type=cache,target=/root/.cache/go-build --mount=type=cache,target=/go/pkg/mod \
    set -e; \
    if [ "$TARGETARCH" = "$(go env GOHOSTARCH)" ]; then \
        make build; \
        set -- -knarr dist/knarr -crictl dist/knarr-crictl; \
    else \
        make "cross-$TARGETARCH"; \
        set -- -knarr "dist/knarr-$TARGETARCH"; \
    fi; \
    go run ./cmd/knarr-image -arch "$TARGETARCH" "$@" -root /image

FROM scratch
COPY --from=build /image /
# The same as cmd/knarr-image says, which a test compares.
ENV PATH=/usr/bin container=oci KNARR_WRITE_KUBECONFIG=/var/lib/knarr/kubeconfig.yaml KUBECONFIG=/var/lib/knarr/kubeconfig.yaml
VOLUME ["/etc/cni", "/var/lib/cni", "/var/lib/knarr", "/var/lib/kubelet", "/var/log"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/knarr"]
CMD ["server"]
