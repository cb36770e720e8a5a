#!/usr/bin/env bash
# kafka.sh - a real Apache Kafka (KRaft, no ZooKeeper) on loopback for tests: one broker or several.
#
#   kafka.sh fetch                       jars from Maven coordinates into the cache
#   kafka.sh jars                        where they are; fails when they are not there yet
#   kafka.sh start DIR PORT [NODES]      format if new, start, wait until it answers; prints the bootstrap list
#   kafka.sh stop DIR                    end all, cleanly
#   kafka.sh up|down|kill DIR N          one broker only (down: SIGTERM, kill: SIGKILL)
#   kafka.sh pid DIR N                   its process id, to freeze it with SIGSTOP and wake it with SIGCONT
#
# Broker N (from 1) listens for clients on PORT + 2(N-1), its controller on the port above.
# DIR holds everything of one cluster; more broker properties go into DIR/extra.properties before `start`, those of one broker
# into DIR/N/extra.properties.
#
# Environment: FORWARDER_TEST_CACHE (~/.cache/forwarder-test), KAFKA_TEST_VERSION (4.3.1), KAFKA_TEST_HEAP (512m), JAVA_HOME
set -euo pipefail

version=${KAFKA_TEST_VERSION:-4.3.1}
cache=${FORWARDER_TEST_CACHE:-$HOME/.cache/forwarder-test}
heap=${KAFKA_TEST_HEAP:-512m}
jars=$cache/kafka-$version
java=${JAVA_HOME:+$JAVA_HOME/bin/}java

die() { echo "kafka.sh: $*" >&2; exit 1; }
client_port() { echo $(($1 + 2 * ($2 - 1))); }

fetch() {
    mkdir -p "$cache"
    exec 9>"$cache/fetch.lock"
    flock 9    # who comes second finds the jars
    [ -e "$jars/.complete" ] && { echo "$jars"; return; }
    work=$(mktemp -d "$cache/fetch.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    printf '%s' '<project><modelVersion>4.0.0</modelVersion><groupId>test</groupId><artifactId>jars</artifactId>' \
        '<version>1</version><packaging>pom</packaging><dependencies><dependency><groupId>org.apache.kafka</groupId>' \
        "<artifactId>kafka_2.13</artifactId><version>$version</version></dependency></dependencies></project>" >"$work/pom.xml"
    mvn -B -q -f "$work/pom.xml" -Dmaven.repo.local="$work/m2" \
        org.apache.maven.plugins:maven-dependency-plugin:2.8:copy-dependencies \
        -DincludeScope=runtime -DoutputDirectory="$work/jars" >&2
    touch "$work/jars/.complete"
    mv -T "$work/jars" "$jars" || die "$jars is in the way"
    echo "$jars"
}

configure() {
    local dir=$1 port=$2 nodes=$3 n more voters='' copies=$(($3 < 3 ? $3 : 3))
    for ((n = 1; n <= nodes; n++)); do voters+=,$n@127.0.0.1:$(($(client_port "$port" "$n") + 1)); done
    echo "$port $nodes" >"$dir/layout"
    for ((n = 1; n <= nodes; n++)); do
        mkdir -p "$dir/$n"
        {
            echo "process.roles=broker,controller
node.id=$n
controller.quorum.voters=${voters#,}
listeners=PLAINTEXT://127.0.0.1:$(client_port "$port" "$n"),CONTROLLER://127.0.0.1:$(($(client_port "$port" "$n") + 1))
advertised.listeners=PLAINTEXT://127.0.0.1:$(client_port "$port" "$n")
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,FRONT:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL,SASL_PLAINTEXT:SASL_PLAINTEXT
log.dirs=$dir/$n/data
num.partitions=4
default.replication.factor=$copies
offsets.topic.replication.factor=$copies
transaction.state.log.replication.factor=$copies
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=$copies
share.coordinator.state.topic.min.isr=1
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
group.initial.rebalance.delay.ms=0
controlled.shutdown.enable=true"
            for more in "$dir/extra.properties" "$dir/$n/extra.properties"; do [ ! -e "$more" ] || cat "$more"; done
        } >"$dir/$n/server.properties"
        printf 'Configuration:\n  Appenders:\n    Console: {name: OUT, PatternLayout: {pattern: "%%d %%p %%c: %%m%%n"}}\n  Loggers:\n    Root: {level: WARN, AppenderRef: {ref: OUT}}\n' >"$dir/$n/log4j2.yaml"
    done
}

run() {
    local dir=$1 n=$2 class=$3; shift 3
    exec setsid "$java" -Xmx"$heap" -XX:+UseG1GC -XX:TieredStopAtLevel="${KAFKA_TEST_JIT:-4}" -XX:-UsePerfData \
        -Dlog4j2.configurationFile="$dir/$n/log4j2.yaml" -cp "$jars/*" "$class" "$@" </dev/null
}

pid_of() {
    local pid
    pid=$(cat "$1/$2/pid" 2>/dev/null) || return 1
    [ -n "$pid" ] && grep -qsaF "$1/$2/" "/proc/$pid/cmdline" && echo "$pid"
}

up() {
    pid_of "$1" "$2" >/dev/null && return
    run "$1" "$2" kafka.Kafka "$1/$2/server.properties" >>"$1/$2/log" 2>&1 &
    echo $! >"$1/$2/pid"
}

end() {
    local pid i
    pid=$(pid_of "$1" "$2") || { rm -f "$1/$2/pid"; return 0; }
    kill -s "$3" "$pid" 2>/dev/null || true
    for ((i = 0; i < 300; i++)); do
        pid_of "$1" "$2" >/dev/null || break
        [ $i -eq 299 ] && kill -s KILL "$pid" 2>/dev/null
        sleep 0.1
    done
    rm -f "$1/$2/pid"
}

answers() { (echo >"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start() {
    local dir=$1 port=$2 nodes=${3:-1} n id list='' limit=$((SECONDS + 90))
    command -v "$java" >/dev/null || die "no Java: there is no $java"
    [ -e "$jars/.complete" ] || die "no jars in $jars: run 'kafka.sh fetch' first"
    configure "$dir" "$port" "$nodes"
    if [ ! -e "$dir/id" ]; then
        # What StorageTool random-uuid makes, without a JVM for it; Kafka takes no id that begins like an option.
        id=A$(head -c 16 /dev/urandom | base64 | tr '+/' '-_' | cut -c 1-21)
        for ((n = 1; n <= nodes; n++)); do
            (run "$dir" "$n" kafka.tools.StorageTool format -t "$id" -c "$dir/$n/server.properties") >"$dir/$n/format.log" 2>&1 ||
                die "format failed: see $dir/$n/format.log"
        done
        echo "$id" >"$dir/id"
    fi
    for ((n = 1; n <= nodes; n++)); do up "$dir" "$n"; done
    for ((n = 1; n <= nodes; n++)); do
        until answers "$(client_port "$port" "$n")"; do
            pid_of "$dir" "$n" >/dev/null || die "broker $n has ended: see $dir/$n/log"
            [ $SECONDS -lt $limit ] || die "broker $n does not answer: see $dir/$n/log"
            sleep 0.1
        done
        list+=,127.0.0.1:$(client_port "$port" "$n")
    done
    echo "${list#,}"
}

absolute() { mkdir -p "$1" && (cd "$1" && pwd -P); }
layout() { read -r port nodes <"$1/layout" || die "never started in $1"; }

case "${1:-} $#" in
    "fetch 1") fetch ;;
    "jars 1") [ -e "$jars/.complete" ] || die "no jars in $jars: run 'kafka.sh fetch' first"; echo "$jars" ;;
    "start 3" | "start 4") start "$(absolute "$2")" "$3" "${4:-1}" ;;
    "stop 2")
        [ -e "$2/layout" ] || exit 0
        dir=$(absolute "$2"); layout "$dir"
        for ((n = 1; n <= nodes; n++)); do end "$dir" "$n" TERM & done; wait ;;
    "up 3")   up "$(absolute "$2")" "$3" ;;
    "down 3") end "$(absolute "$2")" "$3" TERM ;;
    "kill 3") end "$(absolute "$2")" "$3" KILL ;;
    "pid 3")  pid_of "$(absolute "$2")" "$3" ;;
    *) die "usage: fetch | jars | start DIR PORT [NODES] | stop DIR | up|down|kill|pid DIR N" ;;
esac
