"""`rayflow cluster`: a local cluster of real Ray nodes that outlives the command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from rayflow.cli.tables import echo_json, echo_table

if TYPE_CHECKING:
    from rayflow.client.local_cluster import LocalCluster


@click.group("cluster")
def cluster_group() -> None:
    """A local cluster of real Ray nodes on free ports, for development; it outlives the command."""


@cluster_group.command("up")
@click.option(
    "--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Number of Ray nodes."
)
def up_command(nodes: int) -> None:
    """Start a cluster; `rayflow run` and the inspecting commands find it from then on."""
    from rayflow.client.local_cluster import up

    click.echo(f"starting {nodes} Ray {'node' if nodes == 1 else 'nodes'} …")
    cluster = up(nodes)
    click.echo(f"cluster at {cluster.address} with {_count(cluster)}; logs are in {cluster.folder}")


@cluster_group.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status_command(as_json: bool) -> None:
    """Show the recorded cluster's nodes, and whether they live."""
    from rayflow.client.local_cluster import recorded_cluster

    cluster = recorded_cluster()
    if as_json:
        echo_json(_status(cluster))
    elif cluster is None:
        click.echo("no cluster; `rayflow cluster up` starts one")
    else:
        click.echo(f"cluster at {cluster.address}: {'up' if cluster.alive else 'its head is dead'}")
        echo_table(
            ("node", "role", "process", "state"),
            [
                (
                    node.number,
                    "worker" if node.number else "head",
                    str(node.pid),
                    "up" if node.alive else "dead",
                )
                for node in cluster.nodes
            ],
        )


@cluster_group.command("add-node")
def add_node_command() -> None:
    """Start one more node in the recorded cluster."""
    from rayflow.client.local_cluster import add_node

    node = add_node()
    click.echo(f"node {node.number} is up (process {node.pid})")


@cluster_group.command("kill-node")
@click.argument("node", type=click.IntRange(min=0))
def kill_node_command(node: int) -> None:
    """Kill all processes of NODE (its number; 0 is the head) at once, as a power failure would."""
    from rayflow.client.local_cluster import kill_node

    killed = kill_node(node)
    click.echo(f"node {killed.number} is dead (was process {killed.pid})")


@cluster_group.command("down")
def down_command() -> None:
    """End the recorded cluster, with the jobs that run on it."""
    from rayflow.client.local_cluster import down

    click.echo("the cluster is down" if down() else "there was no cluster")


def _status(cluster: LocalCluster | None) -> dict[str, Any]:
    # The cluster's token is a secret and not part of this.
    if cluster is None:
        return {"address": None, "alive": False, "nodes": []}
    nodes = [{"node": node.number, "pid": node.pid, "alive": node.alive} for node in cluster.nodes]
    return {"address": cluster.address, "alive": cluster.alive, "folder": cluster.folder, "nodes": nodes}


def _count(cluster: LocalCluster) -> str:
    return f"{len(cluster.nodes)} {'node' if len(cluster.nodes) == 1 else 'nodes'}"
