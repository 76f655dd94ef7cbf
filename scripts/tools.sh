#!/bin/sh
# Installs the servers that tests start and Debian does not have: Garage (S3), Azurite (Azure Blob Storage) and
# fake-gcs-server (Google Cloud Storage); and cargo-deny. Idempotent; Garage takes a quarter of an hour to compile,
# cargo-deny some minutes, once a machine.
set -eu

TOOLS="${SHOAL_TOOLS:-$HOME/.cache/shoal-tools}"
GARAGE=2.5.0
AZURITE=3.37.0
GCS=v1.56.1
DENY=0.20.2

# Says that a version of a tool is there. A new version asks for a new installation.
is_there() { [ -x "$TOOLS/bin/$1" ] && [ "$(cat "$TOOLS/$1.version" 2>/dev/null)" = "$2" ]; }
remember() { printf '%s\n' "$2" >"$TOOLS/$1.version"; }

install_garage() {
	is_there garage "$GARAGE" && return 0
	echo "installing garage $GARAGE: this compiles for a while"
	# Less optimized than its release, which would compile twice as long for tests that wait for disks.
	CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=64 \
		CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_TARGET_DIR="$TOOLS/build" \
		cargo install garage --version "$GARAGE" --locked --no-default-features --features bundled-libs,lmdb \
		--root "$TOOLS" --force
	rm -rf "$TOOLS/build"
	remember garage "$GARAGE"
}

install_azurite() {
	is_there azurite-blob "$AZURITE" && return 0
	mkdir -p "$TOOLS/lib/azurite"
	npm install --prefix "$TOOLS/lib/azurite" --no-audit --no-fund --loglevel error "azurite@$AZURITE"
	printf '#!/bin/sh\nexec node "%s" "$@"\n' "$TOOLS/lib/azurite/node_modules/azurite/dist/src/blob/main.js" \
		>"$TOOLS/bin/azurite-blob"
	chmod +x "$TOOLS/bin/azurite-blob"
	remember azurite-blob "$AZURITE"
}

install_gcs() {
	is_there fake-gcs-server "$GCS" && return 0
	PATH="$PATH:/usr/local/go/bin"
	command -v go >/dev/null || { echo "tools: fake-gcs-server is built by Go 1.21 or newer: install that first" >&2; exit 1; }
	GOBIN="$TOOLS/bin" go install "github.com/fsouza/fake-gcs-server@$GCS"
	remember fake-gcs-server "$GCS"
}

install_deny() {
	is_there cargo-deny "$DENY" && return 0
	echo "installing cargo-deny $DENY: this compiles for a while"
	CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=64 \
		CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_TARGET_DIR="$TOOLS/build-deny" \
		cargo install cargo-deny --version "$DENY" --locked --root "$TOOLS" --force
	rm -rf "$TOOLS/build-deny"
	remember cargo-deny "$DENY"
}

mkdir -p "$TOOLS/bin"
install_deny
install_azurite
install_gcs
install_garage
