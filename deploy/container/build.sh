#!/usr/bin/env bash
# Builds an image without a daemon and without a registry, and tries the one for CPUs.
#
#   deploy/container/build.sh base    a base image from Debian's packages (debootstrap)
#   deploy/container/build.sh build   the target of the Dockerfile on that base, or on BASE
#   deploy/container/build.sh try     a server from the image: UID 12345, read-only root, /generate
#   deploy/container/build.sh         all three
#
# Needs root, and Debian's packages buildah and debootstrap. Variables, all optional:
#   WORK      where images and the base lie; takes about 8 GB (./container-work)
#   STORAGE_DRIVER  overlay; vfs works on every file system, and takes several times the room
#   BASE      a base image instead of the one made here
#   TARGET    cpu (default), cuda, sbom or sbom-cuda; only cpu can be tried
#   SOURCE    where the sources are, for the image's label
#   WHEELS    a folder of wheels, mounted while building and looked into by pip (torch's CPU build)
#   EXTRA_CA  a file of certificates that the base is to trust too, behind a proxy that needs it
#   SUITE, MIRROR   which Debian, from where
#   PIP_ARGS  more arguments for `buildah bud`, such as --build-arg TORCH_INDEX_URL=...
set -euo pipefail
cd "$(dirname "$0")/../.."

WORK=$(realpath -m "${WORK:-container-work}")
TARGET=${TARGET:-cpu}
SUITE=${SUITE:-bookworm}
OWN_BASE=localhost/tiercel-base
IMAGE=localhost/tiercel:$TARGET
PORT=${PORT:-8099}

export BUILDAH_ISOLATION=chroot
run_buildah() {
  buildah --storage-driver "${STORAGE_DRIVER:-overlay}" --root "$WORK/storage" \
    --runroot "$WORK/run" "$@"
}

make_base() {
  if [ ! -e "$WORK/rootfs/usr/bin/python3" ]; then
    mkdir -p "$WORK"
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv \
      "$SUITE" "$WORK/rootfs" ${MIRROR:+"$MIRROR"}
  fi
  if [ -n "${EXTRA_CA:-}" ]; then
    cp "$EXTRA_CA" "$WORK/rootfs/usr/local/share/ca-certificates/extra.crt"
    chroot "$WORK/rootfs" update-ca-certificates
  fi
  rm -rf "$WORK"/rootfs/var/cache/apt/archives/*.deb "$WORK"/rootfs/var/lib/apt/lists/*
  tar -C "$WORK/rootfs" --exclude=./proc/* --exclude=./sys/* --exclude=./dev/* \
    -cf "$WORK/base.tar" .
  local container
  container=$(run_buildah from scratch)
  run_buildah add "$container" "$WORK/base.tar" / > /dev/null
  run_buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    "$container"
  run_buildah commit --rm "$container" "$OWN_BASE"
  rm "$WORK/base.tar"
}

build() {
  local arguments=(--target "$TARGET" --build-arg "BASE=${BASE:-$OWN_BASE}")
  arguments+=(--build-arg "REVISION=$(git rev-parse HEAD 2> /dev/null || echo unknown)")
  arguments+=(--build-arg "CREATED=$(date -u +%Y-%m-%dT%H:%M:%SZ)")
  if [ -n "${SOURCE:-}" ]; then arguments+=(--build-arg "SOURCE=$SOURCE"); fi
  if [ -n "${WHEELS:-}" ]; then
    arguments+=(--volume "$(realpath "$WHEELS"):/wheels:ro" --build-arg PIP_FIND_LINKS=/wheels)
  fi
  # shellcheck disable=SC2086
  run_buildah bud --format docker --layers "${arguments[@]}" ${PIP_ARGS:-} --tag "$IMAGE" .
  run_buildah images
}

# `buildah run` has no flag for a read-only root: the root is made so from inside, in the run's own
# mount namespace, before everything but the user's rights is given up. Root itself tries to write
# then: what stops the user alone would be the owners of folders.
AS_12345='mount -o remount,ro,bind / || exit 1
  if touch /no 2> /dev/null; then echo "the root can be written"; exit 1; fi
  exec setpriv --reuid 12345 --regid 0 --clear-groups \
  --no-new-privs --bounding-set=-all --inh-caps=-all sh -c "$0"'

try_it() {
  local container data tmp server entry status=1
  container=$(run_buildah from "$IMAGE")
  data=$(mktemp -d "$WORK/data.XXXX") && chgrp 0 "$data" && chmod 2775 "$data"
  tmp=$(mktemp -d "$WORK/tmp.XXXX") && chmod 1777 "$tmp"
  # shellcheck disable=SC2064
  trap "rm -rf '$data' '$tmp'" EXIT
  local in=(run --user 0:0 --cap-add CAP_SYS_ADMIN --env "PORT=$PORT"
    --volume "$data:/data" --volume "$tmp:/tmp" "$container" -- sh -c "$AS_12345")
  run_buildah "${in[@]}" 'id; grep CapEff /proc/self/status
    test "$(id -u):$(id -g)" = 12345:0 || exit 1
    for file in /no /opt/tiercel/no; do
      if touch "$file" 2> /dev/null; then echo "$file could be written"; exit 1; fi
    done
    touch /data/yes /tmp/yes && echo "/data and /tmp can be written, the rest cannot"'
  # What the image starts; the shell in front notes its process for the signal below.
  entry=$(run_buildah inspect --type image \
    --format '{{range .OCIv1.Config.Entrypoint}}{{printf "%q " .}}{{end}}' "$IMAGE")
  [ -n "$entry" ] || { echo "the image has no entry point"; return 1; }
  echo "entry point: $entry"
  run_buildah "${in[@]}" "echo \$\$ > /tmp/pid; exec $entry serve" \
    > "$WORK/try.log" 2>&1 &
  server=$!
  for _ in $(seq 120); do
    if run_buildah "${in[@]}" 'exec tiercel healthcheck' 2> /dev/null; then status=0; break; fi
    kill -0 "$server" 2> /dev/null || break
    sleep 1
  done
  if [ "$status" = 0 ]; then
    grep Uid "/proc/$(cat "$tmp/pid")/status"
    curl --silent --fail "http://127.0.0.1:$PORT/generate" -H 'Content-Type: application/json' \
      -d '{"inputs": "Fellow citizens,", "parameters": {"max_new_tokens": 12}}' || status=1
    echo
    kill -TERM "$(cat "$tmp/pid")"
    wait "$server" && echo "ended with exit code 0 after SIGTERM" || status=1
  fi
  tail -n 4 "$WORK/try.log"
  run_buildah rm "$container" > /dev/null
  return "$status"
}

case "${1:-all}" in
  base) make_base ;;
  build) build ;;
  try) try_it ;;
  all) [ -n "${BASE:-}" ] || make_base; build; try_it ;;
  *) sed -n '2,21p' "$0"; exit 2 ;;
esac
