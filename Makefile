# loopnfs. `make drill` and `make test` do all set-up themselves.

GO      ?= go
TIMEOUT ?= 20m
BENCH   ?= .

# Mounts and open_by_handle_at(2) need root. Test binaries are built by the
# caller and only run as root, so the build cache stays the caller's.
SUDO := $(shell [ "$$(id -u)" -eq 0 ] || echo sudo -E)
EXEC := $(if $(SUDO),-exec '$(SUDO)')

# The race detector needs cgo and a C compiler. Looked up late: setup.sh may
# have installed it.
RACE = $(shell [ "$$($(GO) env CGO_ENABLED)" = 1 ] && command -v "$$($(GO) env CC)" >/dev/null && echo -race)

.PHONY: build drill drill-vm drill-vm-full drill-cluster failover test test-cluster check bench bench-scale bench-packages clean setup-build setup-test setup-drill setup-bench setup-vm setup-cluster

# Without libc and debug tables: what a server does not need is not in memory, and
# threads have the small stacks of the runtime.
build: setup-build
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags='-s -w' -o bin/loopnfs ./cmd/loopnfs
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags='-s -w' -o bin/loopnfs-guest ./harness/vm/guest
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags='-s -w' -o bin/loopnfs-gonfs ./harness/vm/gonfs

drill: setup-drill build
	$(SUDO) bin/loopnfs drill

# On stock kernels in guests: a quarter of an hour, and a night.
drill-vm: setup-vm build
	$(SUDO) bin/loopnfs drill --tier vm

RUNS ?= 3
drill-vm-full: setup-vm build
	$(SUDO) bin/loopnfs drill --tier vm --server all --kernel all --runs $(RUNS) --json drill-vm-full.json --html drill-vm-full.html

# A cluster of namespaces: a node that serves loses its power. Each fault once:
# bin/loopnfs drill takeover --tier cluster
failover: setup-cluster build
	$(SUDO) bin/loopnfs failover

# The same with guests for nodes, whose kernels mount the export: the one that serves is
# killed, the other has no memory left. Some minutes for each server.
drill-cluster: setup-cluster setup-vm build
	$(SUDO) bin/loopnfs drill takeover --tier cluster --via qemu --server loopnfs,knfsd --json drill-cluster.json --html drill-cluster.html

# What counts allocations or memory skips itself with the race detector, and is run again.
WITHOUT_RACE = NoGarbage|DoesNotAllocate|RecordSize|NoAllocations|NothingIsAllocated|TightGroup

test: setup-test build
	$(GO) vet ./...
	LOOPNFS=$(CURDIR)/bin/loopnfs $(GO) test $(RACE) $(EXEC) -count=1 -timeout $(TIMEOUT) ./...
	$(if $(RACE),LOOPNFS=$(CURDIR)/bin/loopnfs $(GO) test $(EXEC) -count=1 -run '$(WITHOUT_RACE)' ./fusefs ./nfsserver ./nfsclient ./cmd/loopnfs)

# Apart from the others, since a cluster goes by the clock: ten minutes.
SCHEDULES ?= 20
SEED ?= 1
test-cluster: setup-cluster build
	LOOPNFS_CLUSTER=$(CURDIR)/bin/loopnfs $(GO) test $(EXEC) -count=1 -timeout 40m -v ./harness/failover -failover.schedules $(SCHEDULES) -failover.seed $(SEED)

check: setup-build
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "gofmt is needed on:"; echo "$$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) test -count=1 ./internal/imports

# Beside other servers, and other FUSE mounts; with REF=COMMIT beside that one, too.
BENCHFLAGS = -commit "$$(git describe --always --dirty 2>/dev/null)" -json bench.json
bench: setup-bench build
	$(GO) build -o bin/bench ./harness/bench
	$(GO) build -o bin/gofuse ./harness/bench/gofuse
	$(if $(REF),scripts/build-ref.sh $(REF) bin/ref)
	$(SUDO) bin/bench $(BENCHFLAGS) -svg bench.svg loopnfs $(if $(REF),$(REF)=bin/ref) ganesha gonfs
	$(SUDO) bin/bench -mounts $(BENCHFLAGS) -svg bench-mounts.svg \
		store $(if $(REF),store-$(REF)=bin/ref) gofuse bindfs passthrough client $(if $(REF),client-$(REF)=bin/ref) libnfs

# What a call costs when there is more of everything, and when memory is short: ten minutes.
bench-scale: setup-bench build
	$(GO) build -o bin/bench ./harness/bench
	$(SUDO) bin/bench -scale $(BENCHFLAGS) -svg bench-scale.svg
	$(SUDO) bin/bench $(BENCHFLAGS) loopnfs arena-full cgroup

bench-packages: setup-test
	$(GO) test $(EXEC) -run '^$$' -bench '$(BENCH)' -benchmem -timeout $(TIMEOUT) ./...

clean:
	rm -rf bin

setup-build:
	@scripts/setup.sh build
setup-test:
	@scripts/setup.sh test
setup-bench:
	@scripts/setup.sh bench
setup-drill:
	@scripts/setup.sh drill
setup-vm:
	@scripts/setup.sh vm
setup-cluster:
	@scripts/setup.sh cluster
