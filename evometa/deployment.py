"""From a nested run to the run below it: what the upper level found becomes the settings of an ordinary run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evometa import champion, folder, trust
from evometa.errors import EvometaError, UsageError
from evometa.nest_search import SLOTS, START, TUNES
from evometa.space import Space, flatten
from evometa.spec import ChampionSpec, Spec, build


def deployed_spec(
    path: Path,
    *,
    generations: int | None = None,
    population: int | None = None,
    champion_spec: ChampionSpec | None = None,
) -> Spec:
    """The spec of the run one level below whose settings are the champion of the run at `path`.

    What the upper level found (hyperparameters, start, slots) is held; the search below is then an ordinary run, over
    all train domains of the task, with its lineage in an archive of its own. `champion_spec`: how that run's champion
    is chosen, by default as any ordinary run's is; a run that is itself a search of searches keeps its own way, for
    there every judgement costs a search. Raises `UsageError` for a run of fewer than two levels, `EvometaError` for
    one without a champion.
    """
    record = folder.read_record(path)
    trust.require(path, record, same=False)
    spec = build({**record["spec"], "generations": record["generations"]})
    if spec.levels < 2:
        raise UsageError(f"{path.name} has {spec.levels} level(s): only a run of two or more can be deployed")
    best = champion.last(path)
    if best is None:
        raise EvometaError(f"{path.name} has no champion yet. Finish it first with: evometa resume {path}")
    space = Space.from_json(record["task"]["space"])
    settings = settings_of(space.decode_host(best.genome), {column.name for column in space.columns})
    below = spec.below(spec.levels - 1)
    if champion_spec is None:
        champion_spec = spec.champion if spec.levels > 2 else ChampionSpec.model_validate({})
    values = {
        **spec.identity(),
        "levels": spec.levels - 1,
        "strategy": below.strategy,
        "strategy_options": {**below.strategy_options, **settings[TUNES]},
        "population": population or below.population,
        "generations": generations or below.generations,
        "fixed": {**spec.fixed, **settings[SLOTS]},
        "start": "baseline",
        "hurdle": None,  # of the level above: its domains are searches
        "champion": champion_spec.model_dump(),
        "plan": {},
        "name": f"{path.name}-deployed",
    }
    if spec.levels == 2:
        values.pop("nest", None)
    elif len(spec.nest) > 1:
        values["nest"] = values["nest"][:-1]
    if settings[START]:
        values["start"] = [float(x) for part in settings[START].values() for x in np.ravel(part)]
    return build(values)


def settings_of(outer: Mapping[str, Any], names: set[str]) -> dict[str, dict[str, Any]]:
    """An outer candidate's values by group and full name, in the order of its columns."""
    flat = flatten(outer, names)
    return {
        group: {name.removeprefix(f"{group}."): value for name, value in flat.items() if name.startswith(f"{group}.")}
        for group in (TUNES, START, SLOTS)
    }
