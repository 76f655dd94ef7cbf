#!/bin/sh
# Holds the dependencies to deny.toml: licences, banned crates, duplicates, sources; and advisories where the RustSec
# database is at hand or can be fetched. Where it is neither, that is said and is no failure.
set -eu
cd "$(dirname "$0")/.."
PATH="$PATH:${SHOAL_TOOLS:-$HOME/.cache/shoal-tools}/bin"
command -v cargo-deny >/dev/null || { echo "deny: cargo-deny is missing: scripts/setup.sh installs it" >&2; exit 1; }

# Duplicates are warnings: of crates that crates of others ask for. They are listed by `cargo deny check bans`.
cargo-deny --locked check --hide-inclusion-graph -A duplicate bans licenses sources

if cargo-deny --locked fetch db >/dev/null 2>&1; then
	cargo-deny --locked --offline check advisories
elif [ -n "$(find "${CARGO_HOME:-$HOME/.cargo}/advisory-dbs" -name 'RUSTSEC-*.md' 2>/dev/null | head -1)" ]; then
	echo "deny: the advisories' database cannot be fetched: the copy from an earlier time is used"
	cargo-deny --locked --offline check advisories
else
	echo "deny: ADVISORIES NOT CHECKED: their database is not here and cannot be fetched"
fi
