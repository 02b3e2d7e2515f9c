#!/usr/bin/env bash
# Helm, and kubeconform with the schemas of one Kubernetes version, built from the Go module proxy and PyPI.
#
#   helm.sh install    build what is not there yet (minutes the first time), and print the folder
#   helm.sh where      print the folder: bin/helm, bin/kubeconform, schemas/
#
# The folder is kept in $HEADWATER_CACHE (default ~/.cache/headwater). Needs Go 1.26 and python3. Nothing is fetched when
# the tools run.
set -euo pipefail

readonly HELM=v3.22.0 KUBECONFORM=v0.8.0 KUBERNETES_VALIDATE=1.37.0 KUBERNETES=1.33.0
readonly TOOLS=${HEADWATER_CACHE:-$HOME/.cache/headwater}/helm-$HELM-kubeconform-$KUBECONFORM-kubernetes-$KUBERNETES

die() { echo "helm.sh: $*" >&2; exit 1; }
usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }

build() { # MODULE VERSION [LINKER FLAGS]
  GOFLAGS=-buildvcs=false GOBIN=$work/bin nice -n 15 go install -trimpath -ldflags "-s -w ${3:-}" "$1@$2" >&2
}

helm_flags() { # as Helm's own releases are built: without them it takes every cluster for a Kubernetes 1.20
  local minor=${KUBERNETES#*.} package
  echo -n "-X helm.sh/helm/v3/internal/version.version=$HELM"
  for package in pkg/chartutil pkg/lint/rules; do
    echo -n " -X helm.sh/helm/v3/$package.k8sVersionMajor=1 -X helm.sh/helm/v3/$package.k8sVersionMinor=${minor%.*}"
  done
}

schemas() { # kubeconform would fetch schemas; this package brings them, with references that only work at its own place
  python3 -m venv "$work/venv"
  "$work/venv/bin/pip" install -q --disable-pip-version-check --no-deps --target "$work/package" \
    "kubernetes-validate==$KUBERNETES_VALIDATE"
  python3 - "$work/package/kubernetes_validate/kubernetes-json-schema/v$KUBERNETES-local-strict" "$work/schemas" <<'END'
import json, pathlib, sys
source, target = map(pathlib.Path, sys.argv[1:])
target.mkdir()
for file in source.glob("*.json"):
    schema = json.loads(file.read_text().replace('"/api/_definitions.json#/', '"_definitions.json#/'))
    schema.pop("$id", None)
    (target / file.name).write_text(json.dumps(schema))
END
}

install() {
  [[ ! -d $TOOLS ]] || return 0
  type -P go >/dev/null || die "Go is missing; install it"
  mkdir -p "${TOOLS%/*}"
  work=$(mktemp -d "$TOOLS.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  build github.com/yannh/kubeconform/cmd/kubeconform "$KUBECONFORM"
  schemas
  build helm.sh/helm/v3/cmd/helm "$HELM" "$(helm_flags)"
  rm -rf "$work/venv" "$work/package"
  chmod 755 "$work"
  mv -T "$work" "$TOOLS" 2>/dev/null || [[ -d $TOOLS ]] # another install may have been faster
}

case ${1:-} in
  install) install; echo "$TOOLS" ;;
  where) echo "$TOOLS" ;;
  *) usage ;;
esac
