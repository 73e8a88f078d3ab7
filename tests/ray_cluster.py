"""Several Ray nodes on 127.0.0.1, in a process of their own: `python ray_cluster.py CPUS[:GPUS] ...`.

Prints the cluster's address once it is there, then does what each line on standard input says (`add CPUS[:GPUS]`;
`remove`: the newest node, without a farewell; `version TEXT`: what the cluster says it runs) and prints a line when that
is done. Ends when standard input does, or by itself after twenty minutes; its reapers end its nodes if it is killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile

SECONDS = 1200
SMALL = {"object_store_memory": 80_000_000, "node_ip_address": "127.0.0.1"}


def serve(nodes: list[str]) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **SMALL})
    try:
        there = [add(cluster, node) for node in nodes]
        print(cluster.address, flush=True)
        for line in sys.stdin:
            what, *values = line.split()
            if what == "add":
                there.append(add(cluster, *values))
            elif what == "remove":
                cluster.remove_node(there.pop(), allow_graceful=False)
            elif what == "version":
                pretend(cluster, *values)
            print(what, flush=True)
    finally:
        cluster.shutdown()


def add(cluster, node: str):
    cpus, _, gpus = node.partition(":")
    return cluster.add_node(num_cpus=int(cpus), num_gpus=int(gpus or 0), **SMALL)


def pretend(cluster, version: str) -> None:
    """Have the cluster say that it runs another version of Ray."""
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
    from ray._private import ray_constants

    client, space = cluster.head_node.get_gcs_client(), ray_constants.KV_NAMESPACE_CLUSTER
    said = json.loads(client.internal_kv_get(CLUSTER_METADATA_KEY, namespace=space))
    said["ray_version"] = version
    client.internal_kv_put(CLUSTER_METADATA_KEY, json.dumps(said).encode(), True, namespace=space)


if __name__ == "__main__":
    folder = tempfile.mkdtemp(prefix="evometa-ray-")  # short, as the names of sockets are
    os.mkdir(f"{folder}/ray")
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ |= {"RAY_health_check_period_ms": "500"}  # a node that was removed is missed after five of them
    signal.signal(signal.SIGALRM, lambda *_: sys.exit("too long"))
    signal.alarm(SECONDS)
    try:
        serve(sys.argv[1:])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
