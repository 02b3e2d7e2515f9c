#!/usr/bin/env bash
# Real, throwaway Kafka, Kafka Connect with Debezium, and PostgreSQL on 127.0.0.1, for tests and captures.
#
#   kafka.sh install                                   fetch the jars and the missing system packages
#   kafka.sh start DIR [kafka] [connect] [postgres]    start those named, or all; installs first where needed
#   kafka.sh stop DIR [kafka] [connect] [postgres]     stop those named, or all that was started in DIR
#
# DIR holds data, logs and pid files of one run; deleting it is up to you.
# The jars are kept in $HEADWATER_CACHE (default ~/.cache/headwater).
# Ports: KAFKA_PORT 19092 (its controller takes the next one), CONNECT_PORT 18083, POSTGRES_PORT 15432.
# KAFKA_PROXY is the port of a proxy, whose clients go on by it: it has to hand on to KAFKA_PORT + 2.
# KAFKA_TLS is a folder with ca.pem and broker.pem (its key and certificate): then the broker speaks TLS, on KAFKA_PORT + 4
# with clients that have a certificate, on KAFKA_PORT + 5 with the user headwater, whose password is KAFKA_PASSWORD.
# JAVA_HEAP 512m is the most that each Java process takes for its heap.
# CONNECT_EXACTLY_ONCE=enabled lets source connectors write in transactions.
# PostgreSQL trusts every local connection as the superuser `postgres`, so no password is needed or kept.
set -euo pipefail

readonly KAFKA=4.3.1 SCALA=2.13 LOG4J=2.25.4 DEBEZIUM=3.6.1.Final MAVEN_PLUGIN=3.9.0
readonly JARS=${HEADWATER_CACHE:-$HOME/.cache/headwater}/kafka-$KAFKA-debezium-$DEBEZIUM
readonly KAFKA_AT=${KAFKA_PORT:-19092} CONNECT_AT=${CONNECT_PORT:-18083} POSTGRES_AT=${POSTGRES_PORT:-15432}
readonly WORKER_BRINGS=org.apache.kafka,org.slf4j,jakarta.ws.rs,com.fasterxml.jackson.core,com.github.luben,at.yawk.lz4,org.xerial.snappy
readonly PATIENCE=90 # seconds for one engine to start

die() { echo "kafka.sh: $*" >&2; exit 1; }
usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }

need() { # COMMAND PACKAGE: install the Debian package unless the command, or a file of that pattern, is there
  type -P "$1" >/dev/null || compgen -G "$1" >/dev/null && return
  [[ $EUID == 0 ]] || die "the package $2 is missing; install it"
  apt-get -qq -o DPkg::Lock::Timeout=300 update
  DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 --no-install-recommends install "$2" >&2
}

jars() { # FOLDER EXCLUDED COORDINATES...: copy the runtime dependencies, but for those groups, into the folder
  local out=$1 excluded=$2 xml='' coordinate group artifact version
  shift 2
  for coordinate in "$@"; do
    IFS=: read -r group artifact version <<<"$coordinate"
    xml+="<dependency><groupId>$group</groupId><artifactId>$artifact</artifactId><version>$version</version></dependency>"
  done
  echo "<project><modelVersion>4.0.0</modelVersion><groupId>x</groupId><artifactId>x</artifactId><version>1</version>
    <packaging>pom</packaging><dependencies>$xml</dependencies></project>" >"$work/pom.xml"
  mvn -B -q -ntp --strict-checksums -f "$work/pom.xml" -Dmaven.repo.local="$work/m2" -DincludeScope=runtime \
    "-DoutputDirectory=$work/jars/$out" "-DexcludeGroupIds=$excluded" \
    "org.apache.maven.plugins:maven-dependency-plugin:$MAVEN_PLUGIN:copy-dependencies" >&2
}

install() {
  need java openjdk-17-jre-headless
  need curl curl
  # else the package would make and start a cluster of its own
  [[ $EUID != 0 || -e /etc/postgresql-common ]] ||
    { mkdir /etc/postgresql-common && echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf; }
  need '/usr/lib/postgresql/*/bin/initdb' postgresql
  [[ ! -d $JARS ]] || return 0
  need mvn maven
  mkdir -p "${JARS%/*}"
  work=$(mktemp -d "$JARS.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  jars kafka none "org.apache.kafka:kafka_$SCALA:$KAFKA" "org.apache.kafka:connect-runtime:$KAFKA" \
    "org.apache.kafka:connect-json:$KAFKA" "org.apache.logging.log4j:log4j-slf4j-impl:$LOG4J"
  # what the Connect worker brings is left out of the plugin: a second Jackson there breaks Debezium's converters
  jars plugins/postgres "$WORKER_BRINGS" "io.debezium:debezium-connector-postgres:$DEBEZIUM"
  mv -T "$work/jars" "$JARS" 2>/dev/null || [[ -d $JARS ]] # another install may have been faster
}

port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

alive() { # NAME: prints the pid of the process started as NAME; a reused pid does not carry our settings file
  local pid
  pid=$(cat "$DIR/$1.pid" 2>/dev/null) && grep -qF "$DIR/$1.properties" "/proc/$pid/cmdline" 2>/dev/null && echo "$pid"
}

launch() { # NAME PORT READY... -- CLASS, settings on standard input; READY is the command that succeeds once it serves
  local name=$1 port=$2 class=${*: -1} ready=("${@:3:$#-4}") end
  local settings=$DIR/$name.properties log=$DIR/$name.log
  local java=(java "-Xmx${JAVA_HEAP:-512m}" -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$JARS/kafka/*"
    "-Dlog4j2.configurationFile=$DIR/log4j2.properties")
  if alive "$name" >/dev/null; then cat >/dev/null; return; fi
  ! port_open "$port" || die "port $port is taken"
  cat >"$settings"
  printf '%s\n' 'rootLogger.level=info' 'rootLogger.appenderRef.out.ref=out' 'appender.out.type=Console' \
    'appender.out.name=out' 'appender.out.layout.type=PatternLayout' 'appender.out.layout.pattern=%d %p %m%n' \
    'logger.config.name=org.apache.kafka.common.config' 'logger.config.level=warn' >"$DIR/log4j2.properties"
  if [[ $name == kafka && ! -d $DIR/kafka ]]; then
    "${java[@]}" kafka.tools.StorageTool format -c "$settings" -t headwater-tests-000001 \
      ${KAFKA_TLS:+--add-scram "SCRAM-SHA-512=[name=headwater,password=$KAFKA_PASSWORD]"} >"$log" 2>&1 || die "see $log"
  fi
  setsid nohup "${java[@]}" "$class" "$settings" >"$log" 2>&1 </dev/null &
  echo $! >"$DIR/$name.pid"
  for ((end = SECONDS + PATIENCE; SECONDS < end;)); do
    if "${ready[@]}"; then return; fi
    kill -0 "$(cat "$DIR/$name.pid")" 2>/dev/null || die "$name ended: $(tail -n 5 "$log")"
    sleep 0.2
  done
  stop_java "$name"
  die "$name did not start in $PATIENCE s: $log"
}

stop_java() { # NAME: SIGTERM, 20 s of patience, SIGKILL
  local pid
  pid=$(alive "$1") || return 0
  kill "$pid"
  for _ in {1..100}; do
    alive "$1" >/dev/null || return 0
    sleep 0.2
  done
  kill -KILL "$pid"
}

kafka_serves() { grep -q 'Kafka Server started' "$DIR/kafka.log" && port_open "$KAFKA_AT"; }

start_kafka() {
  local proxied=${KAFKA_PROXY:-} tls=${KAFKA_TLS:-} secure=''
  if [[ $tls ]]; then secure=",TLS://127.0.0.1:$((KAFKA_AT + 4)),LOGIN://127.0.0.1:$((KAFKA_AT + 5))"; fi
  launch kafka "$KAFKA_AT" kafka_serves -- kafka.Kafka <<CONF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$((KAFKA_AT + 1))
listeners=PLAINTEXT://127.0.0.1:$KAFKA_AT,CONTROLLER://127.0.0.1:$((KAFKA_AT + 1))${proxied:+,PROXIED://127.0.0.1:$((KAFKA_AT + 2))}$secure
advertised.listeners=PLAINTEXT://127.0.0.1:$KAFKA_AT${proxied:+,PROXIED://127.0.0.1:$proxied}$secure
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT,TLS:SSL,LOGIN:SASL_SSL
controller.listener.names=CONTROLLER
log.dirs=$DIR/kafka
# one node; a misspelt topic is an error; the first consumer of a group does not wait for others
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
log.cleaner.dedupe.buffer.size=16777216
$([[ ! $tls ]] || secure_settings "$tls")
CONF
}

secure_settings() { # FOLDER
  cat <<CONF
ssl.keystore.type=PEM
ssl.keystore.location=$1/broker.pem
ssl.truststore.type=PEM
ssl.truststore.location=$1/ca.pem
listener.name.tls.ssl.client.auth=required
listener.name.login.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
listener.name.login.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_headwater="$KAFKA_PASSWORD";
listener.name.login.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
CONF
}

start_connect() {
  launch connect "$CONNECT_AT" curl -fso /dev/null -m 2 "http://127.0.0.1:$CONNECT_AT/health" -- \
    org.apache.kafka.connect.cli.ConnectDistributed <<CONF
bootstrap.servers=127.0.0.1:$KAFKA_AT
listeners=http://127.0.0.1:$CONNECT_AT
group.id=connect
config.storage.topic=connect-configs
offset.storage.topic=connect-offsets
status.storage.topic=connect-status
config.storage.replication.factor=1
offset.storage.replication.factor=1
offset.storage.partitions=1
status.storage.replication.factor=1
status.storage.partitions=1
offset.flush.interval.ms=1000
scheduled.rebalance.max.delay.ms=0
exactly.once.source.support=${CONNECT_EXACTLY_ONCE:-disabled}
key.converter=org.apache.kafka.connect.json.JsonConverter
value.converter=org.apache.kafka.connect.json.JsonConverter
key.converter.schemas.enable=false
value.converter.schemas.enable=false
plugin.path=$JARS/plugins
plugin.discovery=service_load
CONF
}

postgres_run() { # PostgreSQL refuses to be root: then it is the package's user, who must be able to reach DIR
  local bin
  bin=$(compgen -G '/usr/lib/postgresql/*/bin' | sort -V | tail -n 1)
  if [[ $EUID == 0 ]]; then set -- runuser -u postgres -- "$@"; fi
  (cd / && PATH=$bin:$PATH exec "$@")
}

start_postgres() {
  local data=$DIR/postgres/data
  ! postgres_run pg_ctl -D "$data" status >/dev/null 2>&1 || return 0
  ! port_open "$POSTGRES_AT" || die "port $POSTGRES_AT is taken"
  mkdir -p "$DIR/postgres"
  if [[ $EUID == 0 ]]; then
    chmod o+x "$DIR"
    chown postgres: "$DIR/postgres"
  fi
  [[ -d $data ]] || postgres_run initdb -D "$data" -U postgres --auth=trust -E UTF8 --locale=C.UTF-8 -N >/dev/null ||
    die "initdb failed; can the user postgres reach $DIR?"
  # fsync=off is safe against a killed server, not against a power cut; the cap keeps a forgotten slot off the disk
  postgres_run pg_ctl -D "$data" -l "$DIR/postgres/log" -w -t "$PATIENCE" start >/dev/null -o "-p $POSTGRES_AT \
    -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c wal_level=logical -c max_slot_wal_keep_size=2GB \
    -c fsync=off -c full_page_writes=off -c timezone=UTC" || die "PostgreSQL did not start: $DIR/postgres/log"
}

stop_postgres() {
  ! postgres_run pg_ctl -D "$DIR/postgres/data" status >/dev/null 2>&1 ||
    postgres_run pg_ctl -D "$DIR/postgres/data" -m fast -w -t 30 stop >/dev/null
}

for engine in "${@:3}"; do [[ $engine =~ ^(kafka|connect|postgres)$ ]] || usage; done
case ${1:-}:$# in
  install:1) install ;;
  start:[!1]*)
    mkdir -p "$2"
    DIR=$(cd "$2" && pwd -P)
    install
    if (($# == 2)); then set -- "$@" kafka connect postgres; fi
    for engine in "${@:3}"; do "start_$engine"; done
    ;;
  stop:[!1]*)
    DIR=$(cd "$2" && pwd -P)
    if (($# == 2)); then set -- "$@" connect kafka postgres; fi # clients first
    for engine in "${@:3}"; do
      if [[ $engine == postgres ]]; then stop_postgres; else stop_java "$engine"; fi
    done
    ;;
  *) usage ;;
esac
