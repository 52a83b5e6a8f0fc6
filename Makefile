# Each target is one line that a person could type. `make demo` is the place to start.
.PHONY: demo test bench overload fuzz corpus micro plugins cni-bench instructions accept-instructions check static image tools

# What `make image` calls its image.
IMAGE ?= flannel-rs:v0.1.0

demo: tools   ## three nodes on this machine, and a race between the ways to carry packets
	cargo build --release --quiet -p control -p cni --bins && target/release/flanneld demo

test: tools   ## unit, property, corpus replay, namespaces; what cannot run says so
	.ci/test

bench: tools  ## the side-by-side race in namespaces: tables, figures to reach, JSON and SVG in benches/results
	.ci/flannel-peer target/flannel-peer || [ $$? = 75 ]
	cargo build --release -p control --bin flanneld && cargo run --release -p benches --bin overlay

overload: tools ## more than a node can carry: loss by place, garbage, a bad peer, churn; JSON in benches/results
	cargo build --release -p control --bin flanneld && cargo run --release -p benches --bin overload

micro: tools  ## criterion benches of the packet core
	cargo bench -p benches --bench core

plugins:      ## the CNI plugins, small, in target/plugin
	.ci/plugins

cni-bench: tools plugins ## our CNI plugins beside Debian's reference ones, in one run
	.ci/tools /usr/lib/cni/bridge:containernetworking-plugins || true
	cargo bench -p benches --no-default-features --bench cni -- $(CURDIR)/target/plugin

instructions: ## instruction counts of the core against benches/callgrind/baseline.json; a rise fails
	.ci/tools valgrind
	cargo bench --quiet -p benches --no-default-features --bench instructions

accept-instructions: ## takes today's counts as the baseline of this compiler and CPU
	.ci/tools valgrind
	cargo bench --quiet -p benches --no-default-features --bench instructions -- --accept

fuzz: tools   ## every fuzz target for SECONDS each (default 60); needs a nightly toolchain
	.ci/fuzz $(or $(SECONDS),60)

check: tools  ## everything that CI checks
	.ci/run

static:       ## flanneld and the CNI plugins without a shared library (musl), for TARGET (default: this machine's CPU)
	@.ci/static

image:        ## the container image, named IMAGE, by docker or podman
	$(or $(shell command -v docker || command -v podman),docker) build -f deploy/Dockerfile -t $(IMAGE) .

tools:        ## installs what a machine with only the Rust toolchain lacks
	@.ci/tools
