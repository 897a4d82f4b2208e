# One image for every part: docker run IMAGE gateway --nats nats://broker:4222 …
#   docker build --build-arg VERSION="$(git describe --tags --always)" -t pulley .
# The root file system may be read-only; only the broker writes, to /var/lib/pulley.

FROM golang:1.26-bookworm AS build
WORKDIR /src
ENV GOMODCACHE=/cache/mod GOCACHE=/cache/build
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/cache go mod download
COPY . .
ARG VERSION=
# With cgo: the worker loads NVML at run time, where the container toolkit provides it.
RUN --mount=type=cache,target=/cache \
    go build -trimpath -ldflags "-s -w -X main.version=${VERSION} -extldflags=-Wl,-z,lazy" -o /pulley ./cmd/pulley
RUN install -d -o 65532 -g 65532 /state

# glibc, which NVML needs, and certificates; a user without rights.
FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
COPY --from=build /pulley /usr/bin/pulley
COPY --from=build --chown=65532:65532 /state /var/lib/pulley
ENV XDG_STATE_HOME=/var/lib/pulley
USER 65532:65532
EXPOSE 4222 8080 8081
ENTRYPOINT ["/usr/bin/pulley"]
CMD ["--help"]
