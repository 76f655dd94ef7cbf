#!/bin/sh
# Installs what Debian has of what this project needs. Idempotent, and quick when all is there.
#
#   scripts/setup.sh build     what `make build` needs
#   scripts/setup.sh demo      that and what `make demo` runs: one container client
#   scripts/setup.sh bench     what `make build` needs and what `make bench` compares with
#   scripts/setup.sh           that and every client the tests drive
set -eu

BUILD="build-essential clang libclang-dev cmake pkg-config curl ca-certificates jq"
DEMO="busybox-static jq"
BENCH="jq iproute2 procps docker-registry aria2 mktorrent wrk"
TESTS="docker.io docker-cli containerd runc podman conmon buildah skopeo iproute2 util-linux procps
	docker-registry nodejs npm python3 python3-yaml systemd wireguard-go wireguard-tools faketime
	prometheus chromium default-jdk-headless maven python3-pip"

# A package by its state; docker-cli is a part of docker.io before Debian 13.
missing() {
	for package; do
		dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || echo "$package"
	done
}

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

install() {
	wanted=$(missing "$@")
	if echo "$wanted" | grep -qx docker-cli && command -v docker >/dev/null; then
		wanted=$(echo "$wanted" | grep -vx docker-cli || true)
	fi
	# Node's own packages bring npm with them.
	if command -v npm >/dev/null && command -v node >/dev/null; then
		wanted=$(echo "$wanted" | grep -vx -e npm -e nodejs || true)
	fi
	# Any JDK and Maven will do.
	if command -v javac >/dev/null; then wanted=$(echo "$wanted" | grep -vx default-jdk-headless || true); fi
	if command -v mvn >/dev/null; then wanted=$(echo "$wanted" | grep -vx maven || true); fi
	if python3 -m pip --version >/dev/null 2>&1; then wanted=$(echo "$wanted" | grep -vx python3-pip || true); fi
	command -v python3 >/dev/null && wanted=$(echo "$wanted" | grep -vx python3 || true)
	[ -n "$wanted" ] || return 0
	echo "installing: $(echo "$wanted" | tr '\n' ' ')"
	as_root apt-get update -q
	known=
	for package in $wanted; do
		if apt-cache show "$package" >/dev/null 2>&1; then
			known="$known $package"
		elif [ "$package" != docker-cli ]; then
			echo "setup: there is no package $package here" >&2
			exit 1
		fi
	done
	# Services that packages would start are none of ours: the tests start their own.
	# shellcheck disable=SC2086
	as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -q --no-install-recommends $known
}

install_rust() {
	command -v cargo >/dev/null || [ -x "$HOME/.cargo/bin/cargo" ] && return 0
	# rust-toolchain.toml says which toolchain; rustup fetches it at the first use.
	curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain none
}

command -v apt-get >/dev/null || { echo "setup: only Debian and its like; needed: $BUILD $DEMO $TESTS" >&2; exit 1; }

case "${1:-tests}" in
build) install $BUILD ;;
# skopeo needs no daemon and takes any port.
demo) install $BUILD $DEMO skopeo ;;
bench) install $BUILD $BENCH ;;
tests) install $BUILD $DEMO $TESTS ;;
*) echo "usage: $0 [build|demo|bench|tests]" >&2; exit 2 ;;
esac
install_rust
# Servers that Debian does not have, for the tests of storage backends.
[ "${1:-tests}" != tests ] || PATH="$PATH:$HOME/.cargo/bin" "$(dirname "$0")/tools.sh"
