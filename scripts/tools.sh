#!/bin/sh
# Installs what tests start and Debian does not have: the servers Garage (S3), Azurite (Azure Blob Storage),
# fake-gcs-server (Google Cloud Storage), Hadoop's HDFS (WebHDFS) and Moto (Amazon's IAM and ECR); Helm, Docker Compose
# and cargo-deny. Idempotent; Garage takes a quarter of an hour to compile, cargo-deny some minutes, once a machine.
set -eu

TOOLS="${SHOAL_TOOLS:-$HOME/.cache/shoal-tools}"
GARAGE=2.5.0
AZURITE=3.37.0
GCS=v1.56.1
HELM=v3.19.0
COMPOSE=v2.40.3
DENY=0.20.2
# The version of Hadoop is in the pom.xml; this is the one of what is made of it.
HDFS=3.5.0-1
MOTO=5.2.5

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

install_hdfs() {
	is_there minihdfs "$HDFS" && return 0
	for tool in mvn javac; do
		command -v $tool >/dev/null || { echo "tools: $tool is missing: install a JDK of 17 or newer, and Maven" >&2; exit 1; }
	done
	echo "installing HDFS $HDFS: 110 MB of archives"
	rm -rf "$TOOLS/lib/hdfs"
	mkdir -p "$TOOLS/lib/hdfs"
	source="$(dirname "$0")/minihdfs"
	mvn -q -B -f "$source/pom.xml" dependency:copy-dependencies -DoutputDirectory="$TOOLS/lib/hdfs"
	javac -cp "$TOOLS/lib/hdfs/*" -d "$TOOLS/lib/hdfs" "$source/MiniHdfs.java"
	printf '#!/bin/sh\nexec java -Xmx512m -cp "%s:%s/*" MiniHdfs "$@"\n' "$TOOLS/lib/hdfs" "$TOOLS/lib/hdfs" >"$TOOLS/bin/minihdfs"
	chmod +x "$TOOLS/bin/minihdfs"
	remember minihdfs "$HDFS"
}

install_moto() {
	is_there moto-server "$MOTO" && return 0
	rm -rf "$TOOLS/lib/moto"
	python3 -m pip install -q --disable-pip-version-check --target "$TOOLS/lib/moto" "moto==$MOTO" flask flask-cors
	printf '#!/bin/sh\nPYTHONPATH="%s" exec python3 -m moto.server "$@"\n' "$TOOLS/lib/moto" >"$TOOLS/bin/moto-server"
	chmod +x "$TOOLS/bin/moto-server"
	remember moto-server "$MOTO"
}

install_helm() {
	is_there helm "$HELM" && return 0
	PATH="$PATH:/usr/local/go/bin"
	command -v go >/dev/null || { echo "tools: helm is built by Go 1.24 or newer: install that first" >&2; exit 1; }
	GOBIN="$TOOLS/bin" go install "helm.sh/helm/v3/cmd/helm@$HELM"
	remember helm "$HELM"
}

install_compose() {
	is_there docker-compose "$COMPOSE" && return 0
	PATH="$PATH:/usr/local/go/bin"
	command -v go >/dev/null || { echo "tools: docker-compose is built by Go 1.24 or newer: install that first" >&2; exit 1; }
	# `go install` refuses modules that replace others.
	source=$(go mod download -json "github.com/docker/compose/v2@$COMPOSE" | jq -r .Dir)
	rm -rf "$TOOLS/build-compose"
	cp -r "$source" "$TOOLS/build-compose"
	chmod -R u+w "$TOOLS/build-compose"
	(cd "$TOOLS/build-compose" && go build -o "$TOOLS/bin/docker-compose" ./cmd)
	rm -rf "$TOOLS/build-compose"
	remember docker-compose "$COMPOSE"
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
install_hdfs
install_moto
install_helm
install_compose
install_gcs
install_garage
