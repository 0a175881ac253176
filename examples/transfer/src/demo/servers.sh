#!/bin/sh
# Servers of its own for a demonstration, reached by Unix sockets in the folder DATA.
#
#     sh servers.sh DATA UNPACKED
#
# Runs the PostgreSQL and the Redis of this machine. Where there is none, downloads Debian's package
# and unpacks it into UNPACKED/NAME; nothing is installed. Reads commands from standard input, one a
# line: `start-postgresql` and `start-redis-server`, and `crash-postgresql` and `crash-redis-server`,
# which end the server without an orderly shutdown. Answers each on standard output by `done` or
# `failed: REASON`. When standard input ends, also because the parent was killed, stops the servers
# and removes DATA.
set -u
data=$1 folder=$2 unpacked=$2/postgresql new='' programs='' as='' redis='' redis_id=''

fail() {
    echo "failed: $*"
    exit 1
}

find_programs() {
    on_path=$(readlink -f "$(command -v postgres || echo /)")
    for bin in "$unpacked"/usr/lib/postgresql/*/bin "${on_path%/*}" /usr/lib/postgresql/*/bin; do
        [ -x "$bin/postgres" ] && [ -x "$bin/initdb" ] && [ -x "$bin/pg_ctl" ] && programs=$bin
    done
}

# Downloads Debian's package $1, and what this machine lacks for it, into the folder $2. Needs no root.
fetch() {
    command -v apt-get >"$data/log" && command -v dpkg-deb >>"$data/log" ||
        fail "no $1 found, and no apt-get to fetch it with; install it, or set DATABASE_URL and REDIS_URL"
    echo "fetching $1 from Debian into $2" >&2
    new=$2.$$
    mkdir -p "$new/apt/lists/partial" "$new/apt/cache" "$new/packages" || fail "cannot create $new"
    apt() {
        apt-get -q -o "Dir::State::Lists=$new/apt/lists" -o "Dir::Cache=$new/apt/cache" \
            -o APT::Sandbox::User=root "$@" </dev/null 2>>"$data/log"
    }
    apt update >>"$data/log" || fail "apt-get update: $(tail -n 1 "$data/log")"
    # The server loads none of the left out ones: they are for installing it, or for its JIT.
    names=$(apt --simulate install --reinstall --no-install-recommends "$1" |
        sed -n 's/^Inst \([^ ]*\).*/\1/p' |
        grep -Ev '^(adduser|debconf|libc-bin|libc6|libllvm|libperl|libz3|locales|openssl|perl|procps|ssl-cert)')
    [ -n "$names" ] || fail "apt-get install $1: $(tail -n 1 "$data/log")"
    (cd "$new/packages" && apt download $names >>"$data/log") ||
        fail "apt-get download: $(tail -n 1 "$data/log")"
    for package in "$new"/packages/*.deb; do
        dpkg-deb -x "$package" "$new" || fail "dpkg-deb -x $package"
    done
    rm -rf "$new/apt" "$new/packages"
    # Another run may have fetched it meanwhile; then its folder is used.
    mv -T "$new" "$2" 2>>"$data/log"
}

use_libraries_of() {
    libraries=$(uname -m)-linux-gnu
    export LD_LIBRARY_PATH="$1/usr/lib/$libraries:$1/lib/$libraries"
}

# PostgreSQL refuses to run as root: it then runs as `nobody`.
leave_root() {
    [ "$(id -u)" = 0 ] || return 0
    as='setpriv --reuid=65534 --regid=65534 --clear-groups --'
    chown 65534:65534 "$data" || fail "chown $data"
    # A folder above the unpacked programs may be closed to `nobody`.
    case $programs in "$unpacked"/*)
        $as test -r "$programs/postgres" && return 0
        cp -r "$unpacked" "$data/programs" && chown -R 65534:65534 "$data/programs" ||
            fail "cannot copy $unpacked to $data"
        programs=$data/programs${programs#"$unpacked"}
        use_libraries_of "$data/programs"
    esac
}

create() {
    find_programs
    [ -n "$programs" ] || { fetch postgresql "$unpacked"; find_programs; }
    [ -n "$programs" ] || fail "no server in $unpacked"
    case $programs in "$unpacked"/*) use_libraries_of "$unpacked" ;; esac
    leave_root
    $as "$programs/initdb" --pgdata="$data/db" --username=postgres --auth=trust --no-locale \
        --encoding=UTF8 --no-sync >>"$data/log" 2>&1 || fail "initdb: $(tail -n 3 "$data/log" | tr '\n' ' ')"
    cat >>"$data/db/postgresql.conf" <<END
listen_addresses = ''
unix_socket_directories = '$data'
max_connections = 50
max_prepared_transactions = 50
jit = off
END
}

start() {
    [ -d "$data/db" ] || create
    $as "$programs/pg_ctl" -D "$data/db" -l "$data/db/server.log" -w -t 60 start </dev/null >>"$data/log" 2>&1 ||
        fail "pg_ctl start: $(tail -n 3 "$data/db/server.log" | tr '\n' ' ')"
}

crash() {
    $as "$programs/pg_ctl" -D "$data/db" -m immediate -w -t 20 stop </dev/null >>"$data/log" 2>&1
}

find_redis() {
    [ ! -x "$folder/redis/usr/bin/redis-server" ] || redis=$folder/redis/usr/bin/redis-server
    redis=${redis:-$(command -v redis-server)}
}

# In memory only. The socket is there once the server takes connections.
start_redis() {
    find_redis
    [ -n "$redis" ] || { fetch redis-server "$folder/redis"; find_redis; }
    [ -n "$redis" ] || fail "no server in $folder/redis"
    (
        case $redis in "$folder"/*) use_libraries_of "$folder/redis" ;; esac
        exec "$redis" --port 0 --unixsocket "$data/redis.sock" --save '' --appendonly no --dir "$data"
    ) </dev/null >>"$data/redis.log" 2>&1 &
    redis_id=$!
    tries=0
    until [ -S "$data/redis.sock" ]; do
        tries=$((tries + 1))
        kill -0 $redis_id 2>>"$data/log" && [ $tries -lt 600 ] ||
            fail "redis-server: $(tail -n 3 "$data/redis.log" | tr '\n' ' ')"
        sleep 0.1
    done
}

crash_redis() {
    kill -9 $redis_id && wait $redis_id 2>>"$data/log"
    redis_id=''
    rm -f "$data/redis.sock"
}

end() {
    [ ! -f "$data/db/postmaster.pid" ] || crash
    [ -z "$redis_id" ] || crash_redis
    [ -z "$new" ] || rm -rf "$new"
    rm -rf "$data"
}

# Ctrl-C reaches the whole process group; the end of standard input follows.
trap '' INT HUP TERM
trap end EXIT
cd "$data" || fail "no folder $data"
while read -r command; do
    case $command in
    start-postgresql) start ;;
    crash-postgresql) crash || fail "pg_ctl stop: $(tail -n 1 "$data/log")" ;;
    start-redis-server) start_redis ;;
    crash-redis-server) crash_redis ;;
    *) fail "no command $command" ;;
    esac
    echo 'done'
done
