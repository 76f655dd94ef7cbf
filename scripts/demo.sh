#!/bin/sh
# A mesh of separate processes on this machine: 1 bootstrap peer, 1 origin, 3 gateways. An image is built from nothing,
# pushed to the first gateway, pulled from the other two at once, and it is shown who gave which share of the bytes.
# Run it by `make demo`, which builds the program first. DEMO_KEEP=1 leaves the mesh running until Enter is pressed.
set -eu

cd "$(dirname "$0")/.."
target=$(cargo metadata --locked --no-deps --format-version 1 | jq -r .target_directory)
shoal=${SHOAL_BIN:-$target/debug/shoal}
[ -x "$shoal" ] || { echo "demo: $shoal is not built: run \`make demo\`" >&2; exit 1; }

dir=$(mktemp -d "${TMPDIR:-/tmp}/shoal-demo-XXXXXX")
pids=
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

clean_up() {
	status=$?
	trap - EXIT INT TERM
	[ "$status" = 0 ] || for log in "$dir"/*.log; do
		[ -s "$log" ] && { echo "--- $log"; tail -n 20 "$log"; }
	done
	for pid in $pids; do kill "$pid" 2>/dev/null || true; done
	for pid in $pids; do wait "$pid" 2>/dev/null || true; done
	rm -rf "$dir"
	exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# start NAME ROLES ARGUMENT…: starts a process and waits for its ready line.
start() {
	name=$1 roles=$2
	shift 2
	"$shoal" credential issue --mesh-key "$dir/mesh/mesh.key" --roles "$roles" --zone home --out "$dir/$name.id" >/dev/null
	: >"$dir/$name.ready"
	"$shoal" "$@" --data-dir "$dir/$name" --identity "$dir/$name.id" --mesh-pub "$dir/mesh/mesh.pub" --zone home \
		--listen /ip4/127.0.0.1/tcp/0 --ops 127.0.0.1:0 >"$dir/$name.ready" 2>"$dir/$name.log" &
	pid=$!
	pids="$pid $pids"
	tries=0
	until grep -q '^ready ' "$dir/$name.ready"; do
		kill -0 "$pid" 2>/dev/null || { echo "demo: $name did not start" >&2; exit 1; }
		tries=$((tries + 1))
		[ "$tries" -lt 600 ] || { echo "demo: $name is not ready after a minute" >&2; exit 1; }
		sleep 0.1
	done
	echo "  $name: process $pid, $(field "$name" listen)"
}

# field NAME KEY: a field of a process's ready line.
field() {
	sed -n "s/^ready .*\b$2=\([^ ]*\).*/\1/p" "$dir/$1.ready"
}

# wait_for WHAT COMMAND…: until the command succeeds.
wait_for() {
	what=$1
	shift
	tries=0
	until "$@" >/dev/null 2>&1; do
		tries=$((tries + 1))
		[ "$tries" -lt 300 ] || { echo "demo: gave up waiting until $what" >&2; exit 1; }
		sleep 0.2
	done
}

knows_origin() {
	curl -sf "http://$(field "$1" ops)/readyz" &&
		curl -sf "http://$(field "$1" ops)/metrics" | grep -q '^shoal_origins [1-9]'
}

say "Starting a mesh of five processes in $dir"
"$shoal" mesh init --dir "$dir/mesh" >/dev/null
start bootstrap bootstrap bootstrap
door=$(field bootstrap listen)
case $door in */p2p/*) ;; *) door=$door/p2p/$(field bootstrap peer) ;; esac
mkdir -p "$dir/bucket"
start origin node,origin node --origin --backend "fs:$dir/bucket" --data-listen 127.0.0.1:0 --bootstrap "$door"
for number in 1 2 3; do
	start "gateway$number" node,gateway gateway --gateway 127.0.0.1:0 --data-listen 127.0.0.1:0 --bootstrap "$door"
done
for number in 1 2 3; do wait_for "gateway $number knows the origin" knows_origin "gateway$number"; done
one=$(field gateway1 gateway) two=$(field gateway2 gateway) three=$(field gateway3 gateway)

say "Building an image from nothing: busybox and 64 MB of noise"
mkdir -p "$dir/layer/bin" "$dir/noise" "$dir/archive"
cp /bin/busybox "$dir/layer/bin/busybox"
head -c 64000000 /dev/urandom >"$dir/noise/payload"
tar -C "$dir/layer" --owner=0 --group=0 -cf "$dir/archive/1.tar" bin
tar -C "$dir/noise" --owner=0 --group=0 -cf "$dir/archive/2.tar" payload
id() { sha256sum "$1" | cut -d' ' -f1; }
arch=$(dpkg --print-architecture)
jq -n --arg arch "$arch" --arg one "sha256:$(id "$dir/archive/1.tar")" --arg two "sha256:$(id "$dir/archive/2.tar")" '{
	architecture: $arch, os: "linux", created: "2024-01-01T00:00:00Z",
	config: {Cmd: ["/bin/busybox", "sha256sum", "/payload"]},
	rootfs: {type: "layers", diff_ids: [$one, $two]}
}' >"$dir/archive/config.json"
echo '[{"Config": "config.json", "RepoTags": ["demo:1"], "Layers": ["1.tar", "2.tar"]}]' >"$dir/archive/manifest.json"
tar -C "$dir/archive" -cf "$dir/demo.tar" manifest.json config.json 1.tar 2.tar
rm -r "$dir/archive" "$dir/layer" "$dir/noise"

copy() { skopeo --insecure-policy copy --quiet --src-tls-verify=false --dest-tls-verify=false "$@"; }

say "Pushing it to gateway 1 ($one)"
copy --format oci "docker-archive:$dir/demo.tar" "docker://$one/demo:1"

say "Pulling it from gateway 2 ($two) and gateway 3 ($three) at once"
copy "docker://$two/demo:1" "dir:$dir/from2" &
pull2=$!
copy "docker://$three/demo:1" "dir:$dir/from3" &
pull3=$!
wait "$pull2"
wait "$pull3"
for from in "$dir/from2" "$dir/from3"; do
	for file in "$from"/*; do
		name=${file##*/}
		[ ${#name} -ne 64 ] || [ "$(id "$file")" = "$name" ] || { echo "demo: $file has wrong bytes" >&2; exit 1; }
	done
done
cmp "$dir/from2/manifest.json" "$dir/from3/manifest.json"
layer=$(jq -r '.layers | max_by(.size).digest' "$dir/from2/manifest.json")
echo "  every byte is right"

say "Who gave which share of the big layer ($(echo "$layer" | cut -c1-19)…)"
names=$(for name in bootstrap origin gateway1 gateway2 gateway3; do
	jq -n --arg name "$name" --arg peer "$(field "$name" peer)" '{($peer): $name}'
done | jq -s add)
for number in 2 3; do
	curl -sf "http://$(field "gateway$number" ops)/api/v1/pulls" | jq -r --arg digest "$layer" --argjson names "$names" \
		--arg to "gateway$number" '
		(if type == "array" then . else .pulls end) | map(select(.digest == $digest))[0] as $pull
		| ($pull.peers | to_entries | map({from: ($names[.key] // .key), bytes: .value.bytes}))
			+ [{from: "its backend", bytes: ($pull.backend_bytes // 0)}, {from: "its own disk", bytes: ($pull.local_bytes // 0)}]
		| map(select(.bytes > 0)) | (map(.bytes) | add) as $all
		| .[] | "  \($to) got \(.bytes * 1000 / $all | round / 10) % from \(.from) (\(.bytes) bytes)"'
done

if [ -n "${DEMO_KEEP:-}" ]; then
	say "The mesh stays up until you press Enter"
	echo "  docker pull $two/demo:1"
	echo "  curl http://$(field gateway2 ops)/metrics"
	read -r _
fi
say "Done; everything is cleaned up"
