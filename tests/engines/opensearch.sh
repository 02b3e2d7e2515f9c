#!/usr/bin/env bash
# A real, throwaway OpenSearch of one node with the k-NN plugin (Lucene engine) on 127.0.0.1, for tests.
#
#   opensearch.sh install      fetch the jars and the missing system packages
#   opensearch.sh start DIR    start it; installs first where needed
#   opensearch.sh stop DIR     stop what was started in DIR; deleting DIR is up to you
#
# DIR holds data, logs and the pid file of one run. The jars are kept in $HEADWATER_CACHE (default ~/.cache/headwater).
# OPENSEARCH_PORT 19200; JAVA_HEAP 512m is the most that it takes for its heap.
set -euo pipefail

# The newest line of which both the server and the k-NN plugin are published as Maven artefacts.
readonly OPENSEARCH=2.19.1 KNN=2.19.1.0 LOG4J=2.21.0 NETTY=4.1.118.Final ASM=9.7 ANTLR=4.13.1 MAVEN_PLUGIN=3.9.0
readonly HOME_DIR=${HEADWATER_CACHE:-$HOME/.cache/headwater}/opensearch-$OPENSEARCH
readonly PORT=${OPENSEARCH_PORT:-19200}
readonly PATIENCE=120 # seconds for it to start

die() { echo "opensearch.sh: $*" >&2; exit 1; }
usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }

need() { # COMMAND PACKAGE: install the Debian package unless the command is there
  type -P "$1" >/dev/null && return
  [[ $EUID == 0 ]] || die "the package $2 is missing; install it"
  apt-get -qq -o DPkg::Lock::Timeout=300 update
  DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 --no-install-recommends install "$2" >&2
}

dependencies() { # COORDINATES...
  local coordinate group artifact version
  for coordinate in "$@"; do
    IFS=: read -r group artifact version <<<"$coordinate"
    echo "<dependency><groupId>$group</groupId><artifactId>$artifact</artifactId><version>$version</version></dependency>"
  done
}

items() { # FOLDER TYPE COORDINATES...
  local folder=$1 type=$2 coordinate group artifact version
  shift 2
  for coordinate in "$@"; do
    IFS=: read -r group artifact version <<<"$coordinate"
    echo "<artifactItem><groupId>$group</groupId><artifactId>$artifact</artifactId><version>$version</version>
      <type>$type</type><outputDirectory>$home/$folder</outputDirectory></artifactItem>"
  done
}

descriptor() { # MODULE CLASS [EXTENDED]: what the distribution's own build writes beside a module's jars
  printf '%s\n' "name=$1" "description=$1" "version=$OPENSEARCH" "opensearch.version=$OPENSEARCH" java.version=11 \
    "classname=org.opensearch.$2" "extended.plugins=${3:-}" has.native.controller=false \
    >"$home/modules/$1/plugin-descriptor.properties"
}

install() {
  need java openjdk-17-jre-headless
  [[ ! -d $HOME_DIR ]] || return 0
  need javac openjdk-17-jdk-headless
  need mvn maven
  need unzip unzip
  mkdir -p "${HOME_DIR%/*}"
  work=$(mktemp -d "$HOME_DIR.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  home=$work/home
  local plugin=org.opensearch.plugin netty=() part
  for part in buffer codec codec-http common handler resolver transport transport-native-unix-common; do
    netty+=("io.netty:netty-$part:$NETTY")
  done
  cat >"$work/pom.xml" <<XML
<project><modelVersion>4.0.0</modelVersion><groupId>x</groupId><artifactId>x</artifactId><version>1</version>
<packaging>pom</packaging><dependencies>
$(dependencies "org.opensearch:opensearch:$OPENSEARCH" "org.opensearch:opensearch-plugin-classloader:$OPENSEARCH" \
    "org.apache.logging.log4j:log4j-core:$LOG4J")
</dependencies><build><plugins><plugin><groupId>org.apache.maven.plugins</groupId>
<artifactId>maven-dependency-plugin</artifactId><version>$MAVEN_PLUGIN</version><executions>
<execution><id>lib</id><phase>generate-resources</phase><goals><goal>copy-dependencies</goal></goals>
<configuration><outputDirectory>$home/lib</outputDirectory><includeScope>runtime</includeScope></configuration></execution>
<execution><id>modules</id><phase>generate-resources</phase><goals><goal>copy</goal></goals>
<configuration><artifactItems>
$(items modules/transport-netty4 jar "$plugin:transport-netty4-client:$OPENSEARCH" "${netty[@]}")
$(items modules/analysis-common jar "$plugin:analysis-common:$OPENSEARCH")
$(items modules/lang-painless jar "$plugin:lang-painless:$OPENSEARCH" "org.antlr:antlr4-runtime:$ANTLR" \
    "$plugin:opensearch-scripting-painless-spi:$OPENSEARCH" org.ow2.asm:asm{,-analysis,-commons,-tree,-util}:$ASM)
$(items knn zip "$plugin:opensearch-knn:$KNN")
</artifactItems></configuration></execution></executions></plugin></plugins></build></project>
XML
  mvn -B -q -ntp --strict-checksums -f "$work/pom.xml" -Dmaven.repo.local="$work/m2" generate-resources >&2
  descriptor transport-netty4 transport.Netty4Plugin
  descriptor analysis-common analysis.common.CommonAnalysisPlugin lang-painless
  descriptor lang-painless painless.PainlessPlugin
  mkdir -p "$home/plugins" "$home/launcher"
  unzip -qo "$home/knn/*.zip" -d "$home/plugins/opensearch-knn"
  rm -r "$home/knn"
  cat >"$home/launcher/Main.java" <<'JAVA'
import java.nio.file.Path;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import org.opensearch.common.logging.LogConfigurator;
import org.opensearch.common.settings.Settings;
import org.opensearch.node.InternalSettingsPreparer;
import org.opensearch.node.Node;

/** Runs the node of a folder; unlike the distribution's own main class, also as root. */
public final class Main {
    public static void main(String[] args) throws Exception {
        Settings home = Settings.builder().put("path.home", args[1]).build();
        Path config = Path.of(args[0], "config");
        var environment = InternalSettingsPreparer.prepareEnvironment(home, Map.of(), config, () -> "test");
        LogConfigurator.setNodeName("test");
        LogConfigurator.configure(environment);
        Node node = new Node(environment);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try {
                node.close();
                node.awaitClose(20, TimeUnit.SECONDS);
            } catch (Exception error) {
                System.err.println(error);
            }
        }));
        node.start();
        Thread.currentThread().join();
    }
}
JAVA
  javac -nowarn -proc:none -cp "$home/lib/*" -d "$home/launcher" "$home/launcher/Main.java" >&2
  mv -T "$home" "$HOME_DIR" 2>/dev/null || [[ -d $HOME_DIR ]] # another install may have been faster
}

alive() { # prints the pid of the node that was started in DIR; a reused pid does not carry our folder
  local pid
  pid=$(cat "$DIR/opensearch.pid" 2>/dev/null) && { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -qF " Main $DIR " &&
    echo "$pid"
}

serves() { # the node answers, and all that it holds can be searched
  curl -fs -m 5 "http://127.0.0.1:$PORT/_cluster/health?wait_for_status=yellow&timeout=2s" | grep -q '"timed_out":false'
}

start() {
  if alive >/dev/null; then return; fi
  ! curl -s -o /dev/null -m 2 "http://127.0.0.1:$PORT" || die "port $PORT is taken"
  mkdir -p "$DIR"/{config,tmp}
  cat >"$DIR/config/opensearch.yml" <<CONF
path.data: $DIR/data
path.logs: $DIR/logs
http.port: $PORT
transport.port: "0"
network.host: 127.0.0.1
discovery.type: single-node
cluster.routing.allocation.disk.threshold_enabled: false
# a misspelt index is an error
action.auto_create_index: false
CONF
  printf '%s\n' 'rootLogger.level=info' 'rootLogger.appenderRef.out.ref=out' 'appender.out.type=Console' \
    'appender.out.name=out' 'appender.out.layout.type=PatternLayout' 'appender.out.layout.pattern=%d %p %c{1.} %m%n' \
    >"$DIR/config/log4j2.properties"
  env -u JAVA_TOOL_OPTIONS -u _JAVA_OPTIONS setsid nohup java "-Xms${JAVA_HEAP:-512m}" "-Xmx${JAVA_HEAP:-512m}" \
    -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:+ExitOnOutOfMemoryError "-Djava.io.tmpdir=$DIR/tmp" \
    -Djava.awt.headless=true -Djna.nosys=true -Dlog4j.shutdownHookEnabled=false -Dlog4j2.disable.jmx=true \
    -cp "$HOME_DIR/launcher:$HOME_DIR/lib/*" Main "$DIR" "$HOME_DIR" >"$DIR/opensearch.log" 2>&1 </dev/null &
  echo $! >"$DIR/opensearch.pid"
  local end
  for ((end = SECONDS + PATIENCE; SECONDS < end;)); do
    if serves; then return; fi
    kill -0 "$(cat "$DIR/opensearch.pid")" 2>/dev/null || die "it ended: $(tail -n 5 "$DIR/opensearch.log")"
    sleep 0.3
  done
  stop
  die "it did not start in $PATIENCE s: $DIR/opensearch.log"
}

stop() { # SIGTERM, 20 s of patience, SIGKILL
  local pid
  pid=$(alive) || return 0
  kill "$pid"
  for _ in {1..100}; do
    alive >/dev/null || return 0
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
