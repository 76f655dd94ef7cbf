#!/bin/sh
# Makes the mesh's keys and a join token for each part of compose.yaml, once. SHOAL names the program.
set -eu
cd "$(dirname "$0")"
shoal=${SHOAL:-shoal}
command -v "$shoal" >/dev/null || { echo "prepare: no $shoal: build it (make build) and name it with SHOAL=…" >&2; exit 1; }
# The program in the containers is user 65532, and compose hands files over as they are.
[ "$(id -u)" = 0 ] || { echo "prepare: run it as root, who can give the tokens to the containers' user" >&2; exit 1; }
[ -e mesh/mesh.key ] || "$shoal" mesh init --dir mesh
token() {
	[ ! -e "mesh/$1.token" ] || return 0
	"$shoal" mesh join-token --mesh-key mesh/mesh.key --roles "$2" --bootstrap /dns4/bootstrap/tcp/4001 \
		--valid-for 365days --credential-valid-for 365days --out "mesh/$1.token"
	chown 65532:65532 "mesh/$1.token"
}
token bootstrap bootstrap
token origin node,origin
token gateway node,gateway
