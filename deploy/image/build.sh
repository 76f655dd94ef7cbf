#!/bin/sh
# A container image out of a program on this machine, with nothing pulled: the program, the shared libraries that it is
# linked to, CA certificates, a user. It is written as a docker archive, for `docker load`, `podman load` and
# `ctr images import`. The same program makes the same image.
#
#   deploy/image/build.sh PROGRAM REFERENCE OUT.tar
set -eu
[ $# = 3 ] || { echo "usage: $0 PROGRAM REFERENCE OUT.tar" >&2; exit 2; }
program=$1 reference=$2 out=$3
[ -x "$program" ] || { echo "$0: $program is no program: build it first" >&2; exit 1; }
for tool in jq strip ldd sha256sum; do
	command -v "$tool" >/dev/null || { echo "$0: $tool is missing: run scripts/setup.sh build" >&2; exit 1; }
done

dir=$(mktemp -d "${TMPDIR:-/tmp}/shoal-image-XXXXXX")
trap 'rm -rf "$dir"' EXIT
root=$dir/root
mkdir -p "$root/usr/bin" "$root/etc/ssl/certs" "$root/var/lib" "$root/run"
strip -o "$root/usr/bin/shoal" "$program"
chmod 755 "$root/usr/bin/shoal"

# The dynamic linker is among them, by its absolute path.
ldd "$program" | awk '{ for (i = 1; i <= NF; i++) if ($i ~ /^\//) print $i }' | sort -u | while read -r library; do
	mkdir -p "$root$(dirname "$library")"
	cp -L "$library" "$root$library"
done
certificates=${SHOAL_CA_CERTIFICATES:-/etc/ssl/certs/ca-certificates.crt}
[ -r "$certificates" ] || { echo "$0: no CA certificates at $certificates: install ca-certificates" >&2; exit 1; }
cp -L "$certificates" "$root/etc/ssl/certs/ca-certificates.crt"
echo 'shoal:x:65532:65532:Shoal:/var/lib/shoal:/sbin/nologin' >"$root/etc/passwd"
echo 'shoal:x:65532:' >"$root/etc/group"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"

# Owner, time and order are fixed, so that only content makes a difference.
pack="tar --sort=name --mtime=@${SOURCE_DATE_EPOCH:-0} --numeric-owner --format=gnu"
mkdir -p "$dir/archive" "$dir/own/var/lib/shoal" "$dir/own/tmp"
find "$root" -type d -exec chmod 755 {} +
find "$root" -type f ! -perm -111 -exec chmod 644 {} +
chmod 1777 "$dir/own/tmp"
$pack --owner=0 --group=0 -C "$root" -cf "$dir/archive/layer.tar" .
$pack --owner=65532 --group=65532 -C "$dir/own" -rf "$dir/archive/layer.tar" ./var/lib/shoal
$pack --owner=0 --group=0 -C "$dir/own" -rf "$dir/archive/layer.tar" ./tmp

version=$("$program" --version | awk '{ print $2 }')
case $(uname -m) in
x86_64) arch=amd64 ;;
aarch64) arch=arm64 ;;
*) arch=$(uname -m) ;;
esac
layer=$(sha256sum "$dir/archive/layer.tar" | cut -d' ' -f1)
created=$(date -u -d "@${SOURCE_DATE_EPOCH:-0}" +%Y-%m-%dT%H:%M:%SZ)
jq -n --arg arch "$arch" --arg layer "sha256:$layer" --arg version "$version" --arg created "$created" '{
	architecture: $arch, os: "linux", created: $created,
	config: {
		User: "65532:65532",
		Entrypoint: ["/usr/bin/shoal"],
		Cmd: ["--help"],
		WorkingDir: "/var/lib/shoal",
		Env: ["PATH=/usr/bin", "SHOAL_DATA_DIR=/var/lib/shoal", "SHOAL_IDENTITY=/var/lib/shoal/identity",
			"SHOAL_MESH_PUB=/var/lib/shoal/mesh.pub"],
		Volumes: {"/var/lib/shoal": {}},
		ExposedPorts: {"4001/tcp": {}, "4002/tcp": {}, "5000/tcp": {}, "7070/tcp": {}},
		Labels: {"org.opencontainers.image.title": "shoal", "org.opencontainers.image.version": $version,
			"org.opencontainers.image.licenses": "Apache-2.0"}
	},
	rootfs: {type: "layers", diff_ids: [$layer]},
	history: [{created: $created, created_by: "deploy/image/build.sh"}]
}' >"$dir/archive/config.json"
jq -n --arg reference "$reference" \
	'[{Config: "config.json", RepoTags: [$reference], Layers: ["layer.tar"]}]' >"$dir/archive/manifest.json"
$pack --owner=0 --group=0 -C "$dir/archive" -cf "$dir/image.tar" manifest.json config.json layer.tar
mkdir -p "$(dirname "$out")"
mv "$dir/image.tar" "$out"
echo "$out: $reference, $(($(stat -c %s "$out") / 1000000)) MB"
