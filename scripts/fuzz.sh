#!/bin/sh
# Fuzzes the decoders with libFuzzer, on the stable toolchain: the crates of this workspace are compiled with coverage
# counters (LLVM's own pass), their dependencies are not.
#
#   scripts/fuzz.sh [-s SECONDS] [-j JOBS] [TARGET…]    each target for SECONDS (60), JOBS (one a processor) side by side
#   scripts/fuzz.sh --merge [TARGET…]                   what was found anew goes into tests/fuzz/corpus, as little as covers as much
#
# Where they were found, new inputs are kept in $SHOAL_FUZZ_DIR (target/fuzz), crashes as crash-TARGET-*.
set -eu

ROOT="$(cd "$(dirname "$0")/.." && pwd)"
cd "$ROOT"
SECONDS_EACH=60
JOBS=$(nproc)
MERGE=
while [ $# -gt 0 ]; do
	case "$1" in
	-s) SECONDS_EACH="$2"; shift 2 ;;
	-j) JOBS="$2"; shift 2 ;;
	--merge) MERGE=yes; shift ;;
	-*) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
	*) break ;;
	esac
done

TARGET_DIR="$(cargo metadata --locked --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')"
FOUND="${SHOAL_FUZZ_DIR:-$TARGET_DIR/fuzz}"
# The wrapper stands in for the compiler for the crates of the workspace only: their dependencies stay as they are.
RUSTC_WORKSPACE_WRAPPER="$ROOT/scripts/fuzz-rustc.sh" \
	cargo build --locked -p shoal-fuzz --features libfuzzer --bin shoal-fuzz
# A copy: the next build may replace it while it runs.
mkdir -p "$FOUND"
PROGRAM="$FOUND/shoal-fuzz"
cp "$TARGET_DIR/debug/shoal-fuzz" "$PROGRAM.new"
mv "$PROGRAM.new" "$PROGRAM"

# libFuzzer takes the end of the program for a crash, and keeps the input.
[ $# -gt 0 ] || set -- $(SHOAL_FUZZ=list "$PROGRAM" -artifact_prefix="$FOUND/list-" 2>&1 | sed -n 's/^SHOAL_FUZZ must be one of //p' | tr -d ',')

if [ "$MERGE" ]; then
	for target; do
		mkdir -p "tests/fuzz/corpus/$target" "$FOUND/$target" "$FOUND/merged"
		rm -rf "$FOUND/merged"
		mkdir -p "$FOUND/merged"
		SHOAL_FUZZ="$target" "$PROGRAM" -merge=1 -max_len=2048 -artifact_prefix="$FOUND/crash-$target-" \
			"$FOUND/merged" "tests/fuzz/corpus/$target" "$FOUND/$target" 2>/dev/null
		rm -rf "tests/fuzz/corpus/$target"
		mkdir -p "tests/fuzz/corpus/$target"
		# A few of every size: the rest is found again.
		find "$FOUND/merged" -type f -size -4 -printf '%s %p\n' | sort -n |
			awk '{ all[NR] = $2 } END { few = NR < 24 ? NR : 24; for (i = 0; i < few; i++) print all[int(i * NR / few) + 1] }' |
			xargs -r cp -t "tests/fuzz/corpus/$target"
	done
	exit 0
fi

failed=
pids=
running=0
# Waits for all that run.
settle() {
	for pair in $pids; do
		target="${pair%%:*}"
		if wait "${pair##*:}"; then
			sed -n "s/^stat::number_of_executed_units: */$target: executed /p" "$FOUND/$target.log"
		else
			failed="$failed $target"
			echo "$target: FAILED, see $FOUND/$target.log"
		fi
	done
	pids=
	running=0
}
for target; do
	mkdir -p "$FOUND/$target" "$FOUND/seeds/$target" "tests/fuzz/corpus/$target"
	SHOAL_FUZZ="$target" SHOAL_FUZZ_SEEDS="$FOUND/seeds/$target" "$PROGRAM" -runs=0 >/dev/null 2>&1
	SHOAL_FUZZ="$target" "$PROGRAM" -max_total_time="$SECONDS_EACH" -max_len=16384 -timeout=20 -rss_limit_mb=1024 \
		-artifact_prefix="$FOUND/crash-$target-" -print_final_stats=1 \
		"$FOUND/$target" "$FOUND/seeds/$target" "tests/fuzz/corpus/$target" >"$FOUND/$target.log" 2>&1 &
	pids="$pids $target:$!"
	running=$((running + 1))
	[ "$running" -lt "$JOBS" ] || settle
done
settle
find tests/fuzz/corpus -type d -empty -delete
[ -z "$failed" ]
