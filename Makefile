# Each target is one line that a person could type. `make demo` is the place to start.
.PHONY: demo test bench overload fuzz corpus micro check tools

demo: tools   ## three nodes on this machine, and a race between the ways to carry packets
	cargo run --release --quiet -p control --bin flanneld -- demo

test: tools   ## unit, property, corpus replay, namespaces; what cannot run says so
	.ci/test

bench: tools  ## the side-by-side race in namespaces: table, JSON and SVG in benches/results
	cargo build --release -p control --bin flanneld && cargo run --release -p benches --bin overlay

overload: tools ## more than a node can carry: loss by place, garbage, a bad peer, churn; JSON in benches/results
	cargo build --release -p control --bin flanneld && cargo run --release -p benches --bin overload

micro: tools  ## criterion benches of the packet core
	cargo bench -p benches --bench core

fuzz: tools   ## every fuzz target for SECONDS each (default 60); needs a nightly toolchain
	.ci/fuzz $(or $(SECONDS),60)

check: tools  ## everything that CI checks
	.ci/run

tools:        ## installs what a machine with only the Rust toolchain lacks
	@.ci/tools
