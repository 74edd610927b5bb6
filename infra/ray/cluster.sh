#!/usr/bin/env bash
# A Ray cluster for data work, from any set of machines that share this checkout and its environment.
#
#   on the first machine   infra/ray/cluster.sh head           (prints what the others and the jobs need)
#   on every other one     infra/ray/cluster.sh worker HOST:6379
#   then, anywhere         uv run clip-data acquire … --executor.kind ray --executor.ray-address HOST:6379
#
# The cluster ends when the command does (Ctrl-C, or the end of the batch job it runs in).
# Everyone needs the same RAY_AUTH_TOKEN: it allows anyone to run code on the cluster. Ray's ports are open on all
# interfaces, so keep the machines behind a firewall.
set -euo pipefail
cd "$(dirname "$0")/../.."

# One shared environment: without this, Ray would build a copy of it on every machine.
export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token
cpus=${RAY_CPUS:-$(nproc)}

case "${1:-}" in
head)
    if [ -z "${RAY_AUTH_TOKEN:-}" ]; then
        RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
        export RAY_AUTH_TOKEN
        echo "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$RAY_AUTH_TOKEN"
    fi
    # Without a dashboard: it would need ray[default], and `clip-data status` shows the progress.
    exec uv run --no-sync ray start --head --block --disable-usage-stats --include-dashboard=false \
        --port "${RAY_PORT:-6379}" --num-cpus "$cpus" ${RAY_NODE_IP:+--node-ip-address "$RAY_NODE_IP"}
    ;;
worker)
    : "${2:?usage: infra/ray/cluster.sh worker HOST:PORT}" "${RAY_AUTH_TOKEN:?set it to what the head printed}"
    exec uv run --no-sync ray start --address "$2" --block --disable-usage-stats --num-cpus "$cpus" \
        ${RAY_NODE_IP:+--node-ip-address "$RAY_NODE_IP"}
    ;;
*)
    echo "usage: infra/ray/cluster.sh head | worker HOST:PORT" >&2
    exit 2
    ;;
esac
