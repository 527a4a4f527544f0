"""What is left when runs have ended on a real Ray: their weights, and what still holds room."""

import ray
import torch
from safetensors.torch import load_file
from sampa.workers.task import load_task

from .serial import engine_of


def assert_calm(plan, directory):
    """Compare with the same plan trained calmly in this process, bit for bit."""
    torch.set_num_threads(1)
    engine, exchange = engine_of(plan, load_task(plan))
    engine.start(exchange)
    for _ in range(engine.steps):
        engine.advance(exchange)
    engine.stand_on_weights()
    trained = load_file(directory / "model.safetensors")
    for name, tensor in engine.task.model.state_dict().items():
        assert torch.equal(tensor, trained[name]), name


def alive():
    """Return the class names of the living actors but Ray's own, and how many placement groups hold room."""
    living = [one["ActorClassName"] for one in ray._private.state.actors().values() if one["State"] != "DEAD"]
    actors = [name for name in living if name != "_AutoscalingCoordinatorActor"]  # Ray Train's, one for the cluster
    groups = [one for one in ray.util.placement_group_table().values() if one["state"] != "REMOVED"]
    return sorted(actors), len(groups)
