# Targets with a ## comment are listed by `make help`.

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null)
# Lazily bound: NVML's symbols are looked up at run time, where there may be none.
LDFLAGS := -s -w $(if $(VERSION),-X main.version=$(VERSION)) -extldflags=-Wl,-z,lazy
GOFILES  = find . -name node_modules -prune -o -name '*.go' -print
FUZZTIME ?= 20s

# A copy of the Go vulnerability database: a directory, or a URL.
VULNDB ?=
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.8.0

.DEFAULT_GOAL := help

.PHONY: help
help: ## show this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

.PHONY: build
build: ## build bin/pulley
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/pulley ./cmd/pulley

.PHONY: run
run: build ## build, and run everything in one process
	bin/pulley up

.PHONY: test
test: ## run all Go tests
	go test -timeout 20m ./...

.PHONY: check
check: gofmt vet fix staticcheck govulncheck race ## what must pass before a change is sent

.PHONY: gofmt
gofmt:
	@files=$$($(GOFILES) | xargs gofmt -l) || exit 1; \
	if [ -n "$$files" ]; then echo "not formatted by gofmt:"; echo "$$files"; exit 1; fi

.PHONY: vet
vet:
	go vet ./...

.PHONY: fix
fix:
	@diff=$$(go fix -diff ./...); status=$$?; \
	if [ -n "$$diff" ]; then echo "$$diff"; echo "stale idioms: run 'go fix ./...'"; exit 1; fi; \
	exit $$status

.PHONY: staticcheck
staticcheck:
	go tool staticcheck ./...

.PHONY: govulncheck
govulncheck:
ifeq ($(VULNDB),)
	@echo "govulncheck: skipped, VULNDB names no copy of the Go vulnerability database"
else
	go run $(GOVULNCHECK) -db $(if $(findstring ://,$(VULNDB)),$(VULNDB),file://$(abspath $(VULNDB))) ./...
endif

# vet has run on its own. One processor for each test binary: with more, timers of a
# synctest bubble that fire at once share one context of the race detector, which then
# crashes (https://go.dev/issue/78156). It sees the races of one processor all the same.
.PHONY: race
race:
	go test -race -cpu 1 -vet=off -timeout 40m ./...

.PHONY: bench
bench: build ## measure this machine, side by side with a plain reverse proxy
	bin/pulley bench suite

.PHONY: e2e
e2e: build ## drive the binary with the official client libraries
	e2e/run

.PHONY: fuzz
fuzz: ## fuzz each target for a short while (FUZZTIME=20s)
	@set -e; for pkg in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "$$pkg $$target"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

.PHONY: clean
clean: ## remove what the other targets built
	rm -rf bin
