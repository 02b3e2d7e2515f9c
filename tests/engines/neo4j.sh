#!/usr/bin/env bash
# A real, throwaway Neo4j Community server on 127.0.0.1, for tests, from Maven packages alone.
#
#   neo4j.sh install      fetch the jars
#   neo4j.sh start DIR    start, and return once a query can be answered; installs first where needed
#   neo4j.sh stop DIR     stop what was started in DIR; deleting DIR is up to you
#
# DIR holds data, logs and the pid file of one run. The jars are kept in $HEADWATER_CACHE (default ~/.cache/headwater), and
# beside them, from the first stop on, an archive of loaded classes, which takes a third off every later start.
# NEO4J_PORT 17687 is where Bolt listens. NEO4J_PASSWORD is the password of the user neo4j, of 8 characters at least; it
# counts at the first start of a DIR only, and without it nobody is asked for any.
# JAVA_HEAP 512m is the heap. NEO4J_FAST=0 compiles as a server does that stays: it starts later, and is faster then.
set -euo pipefail

readonly NEO4J=5.26.30 MAVEN_PLUGIN=3.9.0 # the line with long-term support
readonly JARS=${HEADWATER_CACHE:-$HOME/.cache/headwater}/neo4j-$NEO4J
readonly AT=${NEO4J_PORT:-17687} PASSWORD=${NEO4J_PASSWORD:-}
readonly PATIENCE=120 # seconds to start

die() { echo "neo4j.sh: $*" >&2; exit 1; }
usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }

need() { # COMMAND PACKAGE: install the Debian package unless the command is there
  ! type -P "$1" >/dev/null || return 0
  [[ $EUID == 0 ]] || die "the package $2 is missing; install it"
  apt-get -qq -o DPkg::Lock::Timeout=300 update
  DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 --no-install-recommends install "$2" >&2
}

install() {
  need java openjdk-17-jre-headless
  [[ ! -d $JARS ]] || return 0
  need mvn maven
  mkdir -p "${JARS%/*}"
  work=$(mktemp -d "$JARS.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  echo "<project><modelVersion>4.0.0</modelVersion><groupId>x</groupId><artifactId>x</artifactId><version>1</version>
    <packaging>pom</packaging><dependencies><dependency><groupId>org.neo4j</groupId><artifactId>neo4j</artifactId>
    <version>$NEO4J</version></dependency></dependencies></project>" >"$work/pom.xml"
  for attempt in 1 2 3; do # of some hundred files one may fail; Maven goes on from what it has
    ! mvn -B -q -ntp --strict-checksums -f "$work/pom.xml" -Dmaven.repo.local="$work/m2" -DincludeScope=runtime \
      "-DoutputDirectory=$work/jars" "org.apache.maven.plugins:maven-dependency-plugin:$MAVEN_PLUGIN:copy-dependencies" >&2 ||
      break
    ((attempt < 3)) || die "Maven could not fetch Neo4j $NEO4J"
  done
  mv -T "$work/jars" "$JARS" 2>/dev/null || [[ -d $JARS ]] # another install may have been faster
}

alive() { # prints the server's pid; a reused pid does not carry our folder
  local pid
  pid=$(cat "$DIR/neo4j.pid" 2>/dev/null) && grep -qzxF -- "--home-dir=$DIR" "/proc/$pid/cmdline" 2>/dev/null && echo "$pid"
}

start() {
  local end archive=$JARS.jsa java=(java "-Xms${JAVA_HEAP:-512m}" "-Xmx${JAVA_HEAP:-512m}" -XX:+UseSerialGC
    -cp "$JARS/*")
  if [[ ${NEO4J_FAST:-1} != 0 ]]; then java+=(-XX:TieredStopAtLevel=1); fi
  ! alive >/dev/null || return 0
  ! (exec 3<>"/dev/tcp/127.0.0.1/$AT") 2>/dev/null || die "port $AT is taken"
  mkdir -p "$DIR"/{conf,logs}
  cat >"$DIR/conf/neo4j.conf" <<CONF
server.default_listen_address=127.0.0.1
server.bolt.listen_address=127.0.0.1:$AT
server.bolt.advertised_address=127.0.0.1:$AT
server.http.enabled=false
server.memory.pagecache.size=128m
dbms.security.auth_enabled=$([[ $PASSWORD ]] && echo true || echo false)
dbms.usage_report.enabled=false
# half a gigabyte of transaction log for every run otherwise
db.tx_log.preallocate=false
db.tx_log.rotation.size=32m
db.tx_log.rotation.retention_policy=64M size
CONF
  if [[ $PASSWORD && ! -d $DIR/data ]]; then
    "${java[@]}" -Dbasedir="$DIR" org.neo4j.server.startup.Neo4jAdminCommand dbms set-initial-password "$PASSWORD" \
      >"$DIR/logs/password.log" 2>&1 || die "the password was refused: $DIR/logs/password.log"
  fi
  if [[ -s $archive ]]; then java+=("-XX:SharedArchiveFile=$archive"); else java+=("-XX:ArchiveClassesAtExit=$DIR/jsa"); fi
  : >"$DIR/logs/neo4j.log" # of older starts
  setsid nohup "${java[@]}" -XX:+ExitOnOutOfMemoryError -Dlog4j2.disable.jmx=true -Djava.io.tmpdir="$DIR" \
    --add-opens=java.base/{java.nio,java.io,sun.nio.ch,java.util.concurrent}=ALL-UNNAMED \
    org.neo4j.server.CommunityEntryPoint "--home-dir=$DIR" "--config-dir=$DIR/conf" >"$DIR/logs/console.log" 2>&1 </dev/null &
  echo $! >"$DIR/neo4j.pid"
  for ((end = SECONDS + PATIENCE; SECONDS < end;)); do # the server says so once every database is there
    if grep -q 'Started\.' "$DIR/logs/neo4j.log"; then return; fi
    kill -0 "$(cat "$DIR/neo4j.pid")" 2>/dev/null || die "Neo4j ended: $(tail -n 5 "$DIR/logs/console.log")"
    sleep 0.2
  done
  stop
  die "Neo4j did not start in $PATIENCE s: $DIR/logs"
}

stop() { # SIGTERM, 60 s of patience, in which it writes the archive of classes too, SIGKILL
  local pid
  pid=$(alive) || return 0
  kill "$pid"
  for _ in {1..300}; do
    if ! alive >/dev/null; then
      if [[ -s $DIR/jsa ]]; then mv "$DIR/jsa" "$JARS.jsa"; fi
      return
    fi
    sleep 0.2
  done
  kill -KILL "$pid"
}

case ${1:-}:$# in
  install:1) install ;;
  start:2)
    mkdir -p "$2"
    DIR=$(cd "$2" && pwd -P)
    install
    start
    ;;
  stop:2)
    DIR=$(cd "$2" && pwd -P)
    stop
    ;;
  *) usage ;;
esac
