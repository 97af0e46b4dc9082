"""A plan as tools read it: plain values, bytes and seconds."""

from typing import Any

from rlpipe.plan.advice import Advice
from rlpipe.plan.placement import Spot, on_gpu, on_host
from rlpipe.plan.roles import Role
from rlpipe.plan.stage import Scene, StagePlan
from rlpipe.plan.whole import Plan


def as_data(plan: Plan, advice: dict[str, list[Advice]]) -> dict[str, Any]:
    """Everything that `show` prints."""
    return {
        "recipe": plan.recipe.name,
        "task": plan.recipe.task,
        "cluster": plan.cluster.named,
        "fits": plan.fits,
        "stages": [_stage(stage, advice.get(stage.name, [])) for stage in plan.stages],
    }


def _stage(stage: StagePlan, advice: list[Advice]) -> dict[str, Any]:
    rates = stage.rates
    return {
        "name": stage.name,
        "task": stage.recipe.task,
        "model": stage.model.name,
        "parameters": stage.model.shapes.size(scores=False),
        "trained_parameters": stage.held.trained,
        "packed_bytes": stage.held.packed,
        "batches": stage.batches.numbers,
        "scenes": [_scene(scene) for scene in stage.scenes],
        "seconds": stage.seconds,
        "rates": {
            "tflops": rates.tflops,
            "utilization": rates.utilization,
            "bandwidth_gb": rates.bandwidth,
            "network_gb": rates.network,
            "host_gb": rates.host,
        },
        "uneven": list(stage.batches.uneven),
        "remarks": list(stage.remarks),
        "shortages": [{"where": one.where, "message": one.message, "bytes": one.missing} for one in stage.shortages],
        "advice": [{"change": one.change, "fullest_bytes": one.fullest} for one in advice],
    }


def _scene(scene: Scene) -> dict[str, Any]:
    return {
        "title": scene.title,
        "roles": [_role(role) for role in scene.roles],
        "nodes": [_node(spot) for spot in scene.placed.spots],
    }


def _role(role: Role) -> dict[str, Any]:
    return {
        "name": role.name,
        "recipe_key": role.key,
        "processes": role.count,
        "gpus": role.gpus,
        "shares": role.shares,
        "model": role.model,
        "moments": {moment: dict(parts) for moment, parts in role.usage.moments.items()},
        "host": role.usage.host,
    }


def _node(spot: Spot) -> dict[str, Any]:
    return {
        "name": spot.node.name,
        "gpus": [
            {"processes": [[seat.host.name, seat.index] for seat in seated], "bytes": on_gpu(seated)}
            for seated in spot.gpus
        ],
        "gpu_bytes": spot.node.gpu_bytes,
        "host": on_host(spot) if spot.seats else {},
        "host_bytes": spot.node.host_bytes,
    }
