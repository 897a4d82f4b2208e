# Targets with a ## comment are listed by `make help`.

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null)
# Lazily bound: NVML's symbols are looked up at run time, where there may be none.
LDFLAGS := -s -w $(if $(VERSION),-X main.version=$(VERSION)) -extldflags=-Wl,-z,lazy
GOFILES  = find . -name node_modules -prune -o -name '*.go' -print
FUZZTIME ?= 20s

# A copy of the Go vulnerability database: a directory, or a URL.
VULNDB ?=
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.8.0
NFPM        := github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.44.2
CYCLONEDX   := github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0

PREFIX  ?= /usr/local
DESTDIR ?=

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

.PHONY: man
man: build ## write manual pages to bin/man1 and completion scripts to bin/completions
	HOME='~' XDG_STATE_HOME= bin/pulley man bin

.PHONY: install
install: man ## install binary, manual pages, completions and systemd units (PREFIX=/usr/local DESTDIR=)
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin bin/pulley
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man1 bin/man1/*.1
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/bash-completion/completions bin/completions/pulley.bash
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/zsh/site-functions bin/completions/_pulley
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d bin/completions/pulley.fish
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	for unit in deploy/systemd/*.service; do \
		sed 's,/usr/bin/,$(PREFIX)/bin/,' $$unit > $(DESTDIR)$(PREFIX)/lib/systemd/system/$$(basename $$unit) || exit 1; done

# The archives are static and cannot read GPUs, which needs cgo; the packages are built
# for this machine's architecture, and can.
.PHONY: release
release: man ## write archives, packages, checksums and a bill of materials into dist/ (VERSION=1.2.3)
	@case '$(VERSION)' in [0-9]*.*|v[0-9]*.*) ;; *) echo "version '$(VERSION)': tag the commit, or set VERSION=1.2.3"; exit 1;; esac
	rm -rf dist/release && mkdir -p dist/release
	@set -e; for target in linux/amd64 linux/arm64 darwin/amd64 darwin/arm64; do \
		os=$${target%/*} arch=$${target#*/} name=pulley_$(VERSION)_$${target%/*}_$${target#*/}; \
		echo "build $$name"; mkdir -p dist/$$name; \
		CGO_ENABLED=0 GOOS=$$os GOARCH=$$arch go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o dist/$$name/pulley ./cmd/pulley; \
		cp -r LICENSE README.md CHANGELOG.md bin/man1 bin/completions dist/$$name; \
		if [ $$os = linux ]; then cp -r deploy/systemd deploy/pulley.yaml dist/$$name; fi; \
		tar -C dist --sort=name --owner=0 --group=0 --numeric-owner -czf dist/release/$$name.tar.gz $$name; rm -rf dist/$$name; done
	@for packager in deb rpm; do \
		VERSION=$(VERSION) ARCH=$$(go env GOARCH) go run $(NFPM) package -f deploy/nfpm.yaml -p $$packager -t dist/release/ || exit 1; done
	go run $(CYCLONEDX) bin -json -version '$(VERSION)' -output dist/release/pulley_$(VERSION).cdx.json bin/pulley
	cd dist/release && sha256sum * > SHA256SUMS

# A test that fails is run once more, and listed as failed even if it passes then: some tests run
# in real time, and machines are noisy. More than a few failures, a data race or a panic fail at once.
GOTESTSUM := gotest.tools/gotestsum@v1.13.0
TESTSUM = go run $(GOTESTSUM) --format pkgname --rerun-fails=1 --rerun-fails-max-failures=5 --rerun-fails-abort-on-data-race
TEST = -timeout 40m

# The scenarios take longest, and one processor: two halves of them run at once, here and in
# make race.
define scenarios
@tests=$$(go test $(1) -list '^(Test|Fuzz|Example)' ./scenarios | grep -E '^(Test|Fuzz|Example)' | \
	awk 'NR % 2 == ("$(2)" == "odd")' | paste -sd'|'); \
if [ -z "$$tests" ]; then echo "scenarios: no tests found"; exit 1; fi; \
$(TESTSUM) --packages=./scenarios -- $(1) -run "^($$tests)\$$"
endef

.PHONY: test test-odd test-even
test: ## run all Go tests
	$(TESTSUM) --packages="$$(go list ./... | grep -v '/scenarios$$' | paste -sd' ')" -- $(TEST)
	@$(MAKE) --no-print-directory -j2 -Otarget test-odd test-even
test-odd test-even: test-%:
	$(call scenarios,$(TEST),$*)

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
RACE = -race -cpu 1 -vet=off -timeout 40m
.PHONY: race race-odd race-even
race:
	$(TESTSUM) --packages="$$(go list ./... | grep -v '/scenarios$$' | paste -sd' ')" -- $(RACE)
	@$(MAKE) --no-print-directory -j2 -Otarget race-odd race-even
race-odd race-even: race-%:
	$(call scenarios,$(RACE),$*)

.PHONY: bench
bench: build ## measure this machine, side by side with a plain reverse proxy
	bin/pulley bench suite
	bin/pulley bench suite --apart

.PHONY: balance
balance: ## print the tables of docs/balance.md: families of traffic, seeds that are drawn; hours
	PULLEY_BALANCE=1 go test -run 'Test(Balance|Tier|Overload|Slowdown)Table$$' -timeout 12h -v ./scenarios

.PHONY: scaling
scaling: ## print the table of docs/autoscaling.md: fleets that follow a rule, on a recorded trace; minutes
	PULLEY_SCALING=1 go test -run 'TestScalingTable$$' -timeout 2h -v ./scenarios

.PHONY: e2e
e2e: build ## drive the binary with the official client libraries
	e2e/run

# What strikes a fleet of processes, and for how long: see chaos/doc.go.
SEED    ?= 1
FOR     ?= 40s
QUIET   ?= 2s
FAULTS  ?= all
BROKERS ?= 1
GATEWAYS ?= 2
RATE    ?= 20
.PHONY: chaos
chaos: build ## strike a fleet under load, and check every request (SEED=1 FOR=40s FAULTS=all BROKERS=1 GATEWAYS=2 RATE=20)
	PULLEY_BIN=$(CURDIR)/bin/pulley go test ./chaos -count=1 -timeout 24h -run TestFaults -v -chaos -seed $(SEED) -for $(FOR) -quiet $(QUIET) -faults '$(FAULTS)' -brokers $(BROKERS) -gateways $(GATEWAYS) -rate $(RATE) $(if $(OUT),-out $(abspath $(OUT)))

# In a network of its own where that is possible, since the commands of README.md use the usual ports.
ALONE := $(shell unshare --user --map-root-user --net --mount true 2>/dev/null && echo "unshare --user --map-root-user --net --mount")
.PHONY: readme
readme: ## run the commands of README.md and of docs/quickstart.md, one block after the other, on clones of this repository
	$(ALONE) sh -c 'ip link set lo up 2>/dev/null; go test ./docs -count=1 -timeout 30m -run "TestReadme|TestQuickstart" -v -readme $(if $(ALONE),-quickstart)'

.PHONY: chaos-long
chaos-long: build ## the same for half an hour with each of three seeds, with one broker and with three
	@for seed in 1 2 3; do for brokers in 1 3; do \
		$(MAKE) --no-print-directory chaos SEED=$$seed BROKERS=$$brokers FOR=30m QUIET=4s || failed=1; \
	done; done; exit $${failed:-0}

.PHONY: chaos-zoo
chaos-zoo: ## show that the checker of make chaos finds each of the known bugs (ZOO=NAME,… for some of them)
	go test ./chaos -count=1 -timeout 30m -run TestZoo -v -zoo $(or $(ZOO),all)

.PHONY: soak
soak: ## put a fleet under an even load for half an hour, and see whether anything grows (FOR=30m BROKERS=1 GATEWAYS=2 RATE=20; LEAK=all: does it find known leaks?)
	go test ./chaos -count=1 -timeout 24h -run TestSoak -v -soak $(if $(filter command line,$(origin FOR)),$(FOR),30m) -seed $(SEED) -brokers $(BROKERS) -gateways $(GATEWAYS) -rate $(RATE) $(if $(LEAK),-leak $(LEAK)) $(if $(OUT),-out $(abspath $(OUT)))

.PHONY: chaos-power
chaos-power: build ## cut the power of all brokers, and look for what they had acknowledged (as root; BROKERS=1)
	PULLEY_BIN=$(CURDIR)/bin/pulley go test ./chaos -count=1 -run TestPowerCut -v -power -brokers $(BROKERS)

.PHONY: stock
stock: ## attack a stock nats-server that has the configuration of pulley nats-config, with the credentials of a worker
	go test ./cmd/pulley -count=1 -run TestWorkerCredentialsAreWorthLittle/nats-server -v -stock

.PHONY: chaos-table
chaos-table: ## write what runs of make chaos have shown into README.md and docs/reliability.md (HISTORIES=FILE,FILE)
	go test ./chaos -count=1 -run TestTables -table $(HISTORIES)

.PHONY: helm
helm: build ## lint and render the Helm chart, and check what it makes against the types of Kubernetes (NATS_CHART=DIR: the values for NATS too)
	cd deploy/helm/test && PULLEY_BIN=$(CURDIR)/bin/pulley NATS_CHART=$(NATS_CHART) go test -count=1 ./...

.PHONY: site
site: ## write the documentation as static pages into dist/site, and check their links
	cd docs/site && go test -count=1 ./... && go run . -from ../.. -out ../../dist/site

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
