"""Jobs of a sweep's recommended configuration: at full length, with seeds that the sweep has not seen."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from ..specs import JobSpec
from .spec import SweepSpec


def promoted(
    spec: SweepSpec,
    values: Mapping[str, JsonValue],
    *,
    seeds: int,
    name: str | None = None,
    epochs: int | None = None,
    steps: int | None = None,
) -> list[JobSpec]:
    """Return one job for each seed.

    Args:
        spec: The sweep's.
        values: Of the searched fields, by path. They hold from the first epoch to the last, also where population based
            training, which has changed them on its way, has found them.
        seeds: How many; the first one follows the last of the sweep's own, so none has had a say in the choice.
        name: Of all of them; the sweep's if left out.
        epochs: Their length; the sweep's if both lengths are left out.
        steps: The same in steps.

    Raises:
        ValidationError: If there is no such job.
    """
    number = spec.numbers_of(0)[0]
    job = spec.trial(number, values)
    fields = job.model_dump(mode="json", by_alias=True, exclude_unset=True)
    length = {"epochs": epochs, "steps": steps} if epochs or steps else {}
    first = job.seed + spec.seeds
    same = {**fields, **length, "name": name or spec.name}
    return [JobSpec.model_validate({**same, "seed": first + index}) for index in range(seeds)]
