#!/usr/bin/env bash
# A Kubernetes control plane on 127.0.0.1 for tests of the Helm chart: etcd, API server, controller manager, scheduler, and
# kwok, which plays a node. Pods are admitted, scheduled and become ready or complete, but nothing runs in them.
#
#   kube.sh install      build what is not there yet from the Go module proxy: one binary that is all of them
#   kube.sh where        print its folder
#   kube.sh start DIR    start all; DIR/kubeconfig is an administrator's; installs first where needed
#   kube.sh stop DIR     stop what was started in DIR; deleting DIR is up to you
#
# DIR holds data, keys, logs and pid files of one run. The binary is kept in $HEADWATER_CACHE (default ~/.cache/headwater).
# The first build takes Go 1.24 or newer, a dozen minutes of processor time and some 2 GB of Go's own caches.
# Ports: KUBE_PORT 16443 of the API server; the others take the next four.
set -euo pipefail

readonly KUBERNETES=1.33.13 KWOK=v0.7.0 ETCD=v3.5.21
readonly AT=${HEADWATER_CACHE:-$HOME/.cache/headwater}/kubernetes-$KUBERNETES-kwok-$KWOK-etcd-$ETCD
readonly PORT=${KUBE_PORT:-16443} NAMES=(etcd kube-apiserver kube-controller-manager kube-scheduler kwok)
readonly PATIENCE=120 # seconds for one of them to start
# Kubernetes names these modules of its own tree without a version.
readonly STAGED="api apiextensions-apiserver apimachinery apiserver cli-runtime client-go cloud-provider cluster-bootstrap
  code-generator component-base component-helpers controller-manager cri-api cri-client csi-translation-lib
  dynamic-resource-allocation endpointslice externaljwt kms kube-aggregator kube-controller-manager kube-proxy
  kube-scheduler kubectl kubelet metrics mount-utils pod-security-admission sample-apiserver"

die() { echo "kube.sh: $*" >&2; exit 1; }
usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }

source_code() { # FOLDER
  local module
  {
    printf 'module kubeall\n\ngo 1.24.0\n\ngodebug default=go1.24\n\nrequire (\n'
    printf '\tk8s.io/kubernetes v%s\n\tsigs.k8s.io/kwok %s\n\tgo.etcd.io/etcd/server/v3 %s\n' $KUBERNETES $KWOK $ETCD
    for module in $STAGED; do printf '\tk8s.io/%s v0.%s\n' "$module" "${KUBERNETES#*.}"; done
    printf ')\n\nreplace (\n'
    for module in $STAGED; do printf '\tk8s.io/%s => k8s.io/%s v0.%s\n' "$module" "$module" "${KUBERNETES#*.}"; done
    printf ')\n'
  } >"$1/go.mod"
  cat >"$1/main.go" <<'END'
// Command kubeall is the component that its own file is named after.
package main

import (
	"os"
	"path/filepath"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	kcm "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kwokconfig "sigs.k8s.io/kwok/pkg/config"
	kwok "sigs.k8s.io/kwok/pkg/kwok/cmd"
	kwoklog "sigs.k8s.io/kwok/pkg/log"
	"sigs.k8s.io/kwok/pkg/utils/signals"
)

func runKwok() int {
	// Kubernetes has put a flag --version into the global set which kwok's library cannot take.
	pflag.CommandLine = pflag.NewFlagSet("kwok", pflag.ContinueOnError)
	flags := pflag.NewFlagSet("global", pflag.ContinueOnError)
	flags.ParseErrorsWhitelist.UnknownFlags = true
	flags.Usage = func() {}
	ctx, logger := kwoklog.InitFlags(signals.SetupSignalContext(), flags)
	ctx, err := kwokconfig.InitFlags(ctx, flags)
	if err != nil {
		logger.Error("flags", err)
		return 1
	}
	command := kwok.NewCommand(ctx)
	command.PersistentFlags().AddFlagSet(flags)
	if err := command.ExecuteContext(ctx); err != nil {
		logger.Error("ended", err)
		return 1
	}
	return 0
}

func main() {
	switch filepath.Base(os.Args[0]) {
	case "etcd":
		etcdmain.Main(os.Args)
	case "kube-apiserver":
		os.Exit(cli.Run(apiserver.NewAPIServerCommand()))
	case "kube-controller-manager":
		os.Exit(cli.Run(kcm.NewControllerManagerCommand()))
	case "kube-scheduler":
		os.Exit(cli.Run(scheduler.NewSchedulerCommand()))
	case "kwok":
		os.Exit(runKwok())
	default:
		os.Exit(2)
	}
}
END
}

linker_flags() { # as Kubernetes' own releases are built: without them it calls itself v0.0.0 and Helm refuses it
  local package minor=${KUBERNETES#*.}
  echo -n "-s -w"
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    echo -n " -X $package.gitVersion=v$KUBERNETES -X $package.gitMajor=1 -X $package.gitMinor=${minor%.*}"
  done
}

install() {
  local name
  [[ ! -d $AT ]] || return 0
  type -P go >/dev/null || die "Go is missing; install it"
  mkdir -p "${AT%/*}"
  work=$(mktemp -d "$AT.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  mkdir "$work/bin" "$work/source"
  source_code "$work/source"
  (cd "$work/source" && GOFLAGS='-mod=mod -buildvcs=false' nice -n 15 \
    go build -trimpath -ldflags "$(linker_flags)" -o "$work/bin/kubeall" .) >&2
  for name in "${NAMES[@]}"; do ln -s kubeall "$work/bin/$name"; done
  rm -rf "$work/source"
  chmod 755 "$work"
  mv -T "$work" "$AT" 2>/dev/null || [[ -d $AT ]] # another install may have been faster
}

keys() { # an authority, the API server's certificate, the key that signs accounts, the administrator's token
  local keys=$DIR/keys
  [[ ! -e $keys/users.csv ]] || return 0
  mkdir -p "$keys"
  chmod 700 "$keys"
  {
    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=authority -keyout "$keys/ca.key" -out "$keys/ca.crt"
    openssl req -newkey rsa:2048 -nodes -subj /CN=kube-apiserver -keyout "$keys/api.key" -out "$keys/api.csr"
    openssl x509 -req -days 30 -in "$keys/api.csr" -CA "$keys/ca.crt" -CAkey "$keys/ca.key" -CAcreateserial \
      -extfile <(echo subjectAltName=DNS:localhost,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:10.96.0.1) -out "$keys/api.crt"
    openssl genrsa -out "$keys/accounts.key" 2048
    openssl rsa -in "$keys/accounts.key" -pubout -out "$keys/accounts.pub"
  } 2>/dev/null
  token=$(openssl rand -hex 16)
  cat >"$DIR/kubeconfig" <<END
apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "https://127.0.0.1:$PORT", certificate-authority-data: $(base64 -w0 <"$keys/ca.crt")}}]
users: [{name: test, user: {token: $token}}]
contexts: [{name: test, context: {cluster: test, user: test}}]
current-context: test
END
  echo "$token,admin,admin,system:masters" >"$keys/users.csv"
}

alive() { # NAME: prints the pid of the process started as NAME; a reused pid does not carry our folder
  local pid
  pid=$(cat "$DIR/$1.pid" 2>/dev/null) && grep -qF "$DIR/" "/proc/$pid/cmdline" 2>/dev/null && echo "$pid"
}

launch() { # NAME ARGUMENTS... -- READY...; READY is the command that succeeds once it serves
  local name=$1 arguments=() end
  shift
  while [[ $1 != -- ]]; do arguments+=("$1"); shift; done
  shift
  if ! alive "$name" >/dev/null; then
    GOMEMLIMIT=512MiB setsid nohup nice -n 10 "$AT/bin/$name" "${arguments[@]}" >"$DIR/$name.log" 2>&1 </dev/null &
    echo $! >"$DIR/$name.pid"
  fi
  for ((end = SECONDS + PATIENCE; SECONDS < end;)); do
    if "$@" >/dev/null 2>&1; then return; fi
    kill -0 "$(cat "$DIR/$name.pid")" 2>/dev/null || die "$name ended: $(tail -n 5 "$DIR/$name.log")"
    sleep 0.2
  done
  die "$name did not start in $PATIENCE s: $DIR/$name.log"
}

ask() { curl -fsS -m 5 --noproxy '*' "$@"; }
api() { # PATH [CURL ARGUMENTS]
  ask --cacert "$DIR/keys/ca.crt" -H "Authorization: Bearer $(cut -d, -f1 "$DIR/keys/users.csv")" \
    "https://127.0.0.1:$PORT$1" "${@:2}"
}

node() { # a node that kwok plays
  api /api/v1/nodes/node >/dev/null 2>&1 || api /api/v1/nodes -H 'Content-Type: application/json' -d '{
    "apiVersion": "v1", "kind": "Node",
    "metadata": {"name": "node", "labels": {"kubernetes.io/hostname": "node"}, "annotations": {"kwok.x-k8s.io/node": "fake"}},
    "status": {"capacity": {"cpu": "32", "memory": "256Gi", "pods": "250"}, "allocatable": {"cpu": "32", "memory": "256Gi",
    "pods": "250"}}}' >/dev/null
  api /api/v1/nodes/node | tr -d ' \n' | grep -q '"type":"Ready","status":"True"'
}

start() {
  local keys=$DIR/keys etcd=http://127.0.0.1:$((PORT + 1)) peer=http://127.0.0.1:$((PORT + 2))
  local local_only=(--kubeconfig "$DIR/kubeconfig" --leader-elect=false --bind-address 127.0.0.1 --secure-port)
  (umask 077 && keys)
  # fsync is safe against a killed process; without it, not against a power cut
  launch etcd --name test --data-dir "$DIR/etcd" --unsafe-no-fsync --log-level warn --listen-client-urls "$etcd" \
    --advertise-client-urls "$etcd" --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" \
    --initial-cluster "test=$peer" -- ask "$etcd/health"
  launch kube-apiserver --etcd-servers "$etcd" --bind-address 127.0.0.1 --advertise-address 127.0.0.1 \
    --secure-port "$PORT" --endpoint-reconciler-type none --service-cluster-ip-range 10.96.0.0/16 \
    --tls-cert-file "$keys/api.crt" --tls-private-key-file "$keys/api.key" --authorization-mode RBAC \
    --token-auth-file "$keys/users.csv" --service-account-issuer https://kubernetes.default.svc \
    --service-account-key-file "$keys/accounts.pub" --service-account-signing-key-file "$keys/accounts.key" -- api /readyz
  launch kube-controller-manager "${local_only[@]}" $((PORT + 3)) --root-ca-file "$keys/ca.crt" \
    --service-account-private-key-file "$keys/accounts.key" -- api /api/v1/namespaces/default/serviceaccounts/default
  launch kube-scheduler "${local_only[@]}" $((PORT + 4)) -- ask -k "https://127.0.0.1:$((PORT + 4))/healthz"
  KWOK_WORKDIR=$DIR/kwok launch kwok --kubeconfig "$DIR/kubeconfig" --manage-all-nodes=false \
    --manage-nodes-with-annotation-selector kwok.x-k8s.io/node=fake --node-lease-duration-seconds 40 -- node
}

stop() { # clients first; SIGTERM, 20 s of patience, SIGKILL
  local index pid
  for ((index = ${#NAMES[@]} - 1; index >= 0; index--)); do
    pid=$(alive "${NAMES[index]}") || continue
    kill "$pid"
    for _ in {1..100}; do
      alive "${NAMES[index]}" >/dev/null || continue 2
      sleep 0.2
    done
    kill -KILL "$pid"
  done
}

case ${1:-}:$# in
  install:1) install ;;
  where:1) echo "$AT" ;;
  start:2)
    mkdir -p "$2"
    DIR=$(cd "$2" && pwd -P)
    install
    trap 'code=$?; ((code == 0)) || stop; exit $code' EXIT # a failed start leaves nothing running
    start
    ;;
  stop:2)
    DIR=$(cd "$2" && pwd -P)
    stop
    ;;
  *) usage ;;
esac
