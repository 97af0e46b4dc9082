"""Can the nodes reach each other, and shake hands as training ranks do?"""

from collections.abc import Mapping, Sequence

from rlpipe.runtime.check import Check, fail, ok, skip
from rlpipe.runtime.preflight.look import Seen
from rlpipe.runtime.preflight.nodes import ClusterNode
from rlpipe.runtime.preflight.probes import Probes

ANSWERS, PORTS, HANDSHAKE = "nodes", "ports", "handshake"
_SHAKE_SECONDS = 30.0
_CALL_SECONDS = 15.0
FIX = (
    "let the nodes reach each other on all TCP ports (ranks take free ones); with several networks, name the one in "
    "the environment of `ray start`, for example GLOO_SOCKET_IFNAME=eth0 and NCCL_SOCKET_IFNAME=eth0"
)


def check_answers(nodes: Sequence[ClusterNode], silent: Mapping[ClusterNode, str]) -> Check:
    """`silent`: the nodes whose probe said nothing, and why."""
    if silent:
        detail = "\n".join(f"{node.name} does not answer: {why}" for node, why in silent.items())
        fix = (
            "see `ray status` and Ray's logs on that node (rlpipe must be importable there, and deadlines.preflight "
            "long enough for a process to start), or take it out of the cluster: `ray stop` there"
        )
        return fail(ANSWERS, detail, fix)
    return ok(ANSWERS, f"{len(nodes)} answer: {', '.join(node.name for node in nodes)}")


def check_ports(probes: Probes, seen: Mapping[ClusterNode, Seen]) -> Check:
    """Each can open a port on its own address, and every other one reaches it there."""
    wrong = [
        f"{node.name} cannot open a port on its own address: {one.binds}" for node, one in seen.items() if one.binds
    ]
    if not wrong:
        where = probes.ask(lambda node, actor: actor.listen.remote(), _CALL_SECONDS)
        places = {node.id: place for node, place in where.items()}
        called = probes.ask(lambda node, actor: actor.call.remote(_without(places, node.id)), _CALL_SECONDS)
        names = {node.id: node.name for node in where}
        wrong = [
            f"{node.name} cannot reach {names[other]} at port {places[other][1]}: {why}"
            for node, failed in called.items()
            for other, why in failed.items()
        ]
    if wrong:
        return fail(PORTS, "\n".join(wrong), FIX)
    return ok(PORTS, f"{len(probes.nodes)} nodes reach each other" if len(probes.nodes) > 1 else "can be opened")


def _without(places: Mapping[str, tuple[str, int]], one: str) -> dict[str, tuple[str, int]]:
    return {node: place for node, place in places.items() if node != one}


def check_handshake(probes: Probes) -> Check:
    """One all-reduce over a process on each node."""
    nodes = probes.nodes
    if len(nodes) < 2:
        return skip(HANDSHAKE, "fewer than two nodes could take part that training ranks may come to")
    probes.ask(lambda node, actor: actor.warm.remote())
    met = probes.ask(lambda node, actor: actor.meeting_point.remote())
    if lost := [node for node in nodes if node not in met]:
        told = "\n".join(f"{node.name}: {probes.silent[node]}" for node in lost)
        return fail(HANDSHAKE, told, "see Ray's logs there, or raise deadlines.preflight: torch is slow to import")
    address, port = met[nodes[0]]
    within = max(1.0, min(_SHAKE_SECONDS, probes.seconds_left))
    said = probes.ask(
        lambda node, actor: actor.shake.remote(nodes.index(node), len(nodes), address, port, within), within + 10
    )
    wrong = {node: why for node, why in said.items() if why}
    wrong |= {node: probes.silent[node] for node in nodes if node in probes.silent}
    if not wrong:
        return ok(HANDSHAKE, f"{len(nodes)} nodes add up a number as training ranks do")
    told = "\n".join(f"{node.name}: {why}" for node, why in wrong.items())
    return fail(HANDSHAKE, f"{len(nodes)} nodes, meeting at {address}:{port}, could not add up a number\n{told}", FIX)
