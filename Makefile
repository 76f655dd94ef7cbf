# Everything a newcomer needs: `make demo` to see it work, `make check` while working, `make test` before pushing.

PATH := $(PATH):$(HOME)/.cargo/bin
export PATH

# The crates without I/O: the inner loop takes seconds. They are the workspace's default members.
PURE := -p shoal-types -p shoal-engine -p shoal-simulations

.PHONY: help check lint build test test-large flood fuzz demo bench bench-hot images

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

check: ## format, lints and tests of the crates without I/O: about a minute
	cargo fmt --check
	cargo clippy --locked $(PURE) --all-targets -- -D warnings
	cargo test --locked $(PURE)

lint: ## lints of everything, a build of its own; licences, sources and advisories of dependencies
	cargo fmt --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	scripts/deny.sh

build: ## the program
	scripts/setup.sh build
	cargo build --locked -p shoal

# The end-to-end tests start the program that is built first, and refuse one that is older than its sources.
test: ## everything, the same that CI runs; needs root for the container engines
	scripts/setup.sh
	scripts/deny.sh
	cargo fmt --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo build --locked --workspace --all-targets
	cargo test --locked --workspace

test-large: ## the image of 1 GiB
	scripts/setup.sh
	cargo build --locked -p shoal
	cargo test --locked -p shoal-tests --test e2e -- --ignored large_

flood: ## ten thousand connections to each port while members pull: what that costs them, and memory; minutes
	scripts/setup.sh build
	cargo build --locked -p shoal
	cargo test --locked -p shoal-tests --test e2e -- --ignored --nocapture --test-threads 1 flood::

# FUZZ passes arguments, such as FUZZ="-s 600" for ten minutes each, or FUZZ="-s 60 frames rpc" for two targets.
fuzz: ## libFuzzer on every decoder, a minute each, one a processor at a time; a build of its own
	scripts/setup.sh build
	scripts/fuzz.sh $(FUZZ)

# BENCH passes arguments, such as BENCH="hosts-8 --runs 1"; `--list` shows the scenarios, `--help` the rest.
bench: ## a fleet in network namespaces pulls one blob at once, beside aria2 and a registry; needs root, half an hour
	scripts/setup.sh bench
	cargo build --locked --release -p shoal -p shoal-tests --bin shoal --bin shoal-bench
	"$$(cargo metadata --locked --no-deps --format-version 1 | jq -r .target_directory)"/release/shoal-bench $(BENCH)

# HOT passes arguments to criterion, such as HOT="pick --quick".
bench-hot: ## what is hot, by criterion: engine decisions, verification, codec, store writes, the data plane
	scripts/setup.sh build
	cargo bench --locked -p shoal-engine -p shoal-types -p shoal-store -p shoal-net --bench engine --bench pieces --bench writes \
		--bench plane -- $(HOT)

demo: ## a mesh of processes on this machine, a push and two pulls, and who gave what
	scripts/setup.sh demo
	cargo build --locked -p shoal
	scripts/demo.sh

images: ## a container image of the release build, as target/images/shoal.tar: nothing is pulled
	scripts/setup.sh build
	cargo build --locked --release -p shoal
	deploy/image/build.sh "$$(cargo metadata --locked --no-deps --format-version 1 | jq -r .target_directory)/release/shoal" \
		shoal:latest target/images/shoal.tar
