"""The file of a study: a base recipe, named variants of it, and a search space."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import Field, ValidationError

from tutelage.core.errors import TutelageError, one_line
from tutelage.core.invalid import first_error
from tutelage.core.recipe import Recipe, parse_recipe
from tutelage.core.recipe_tree import parse_override, read_value, read_yaml, rename_keys, set_keys
from tutelage.core.run_dir import NAME
from tutelage.core.values import Component, Seed, Text

# Settings of the images for model selection and final evaluation: trials that differ in them cannot be ranked.
SAME_IMAGES = {"val", "test", "val_fraction", "test_fraction", "split_seed", "limit", "val_limit"}


class Range(Component):
    """The range in which a number is searched: whole numbers where both ends are whole."""

    low: int | float
    high: int | float
    step: Annotated[float, Field(gt=0)] | None = None
    log: bool = False  # sampled evenly over its logarithm

    def distribution(self) -> BaseDistribution:
        """Return the range as Optuna's distribution.

        Raises:
            ValueError: `low` is above `high`, or Optuna refuses the combination.
        """
        if isinstance(self.low, int) and isinstance(self.high, int):
            return IntDistribution(self.low, self.high, log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)


class StudyRecipe(Component):
    """A study's file as it is written."""

    name: Text | None = None  # of the study's directory; null: the file's name
    base: str | dict[str, Any]  # a recipe, or the path of its file relative to the study's
    variants: tuple[dict[str, Any], ...] = ()  # each has a name, and the keys that differ from the base
    # by key: a list of choices, or {low, high, step, log}
    search: dict[str, Any] = Field(default_factory=dict)
    sampler: Literal["tpe", "random", "grid"] = "tpe"  # grid: every combination of the choices
    trials: Annotated[int, Field(ge=1)] | None = None  # in total, variants first; null: variants and grid
    seed: Seed = 0  # of the sampler
    seeds: Annotated[int, Field(ge=1)] = 1  # of training: each variant has a trial for each
    against: Text | None = None  # the variant that all are held against; null: the best
    storage: str | None = None  # a database's URL; null: a journal in the study's directory


@dataclass(frozen=True)
class Variant:
    """A named set of overrides.

    Attributes:
        name: of its trial.
        overrides: by key.
        of: name of the variant in the study's file, where this one has another seed.
    """

    name: str
    overrides: dict[str, Any]
    of: str = ""


@dataclass(frozen=True)
class Plan:
    """A validated study file, with the content of the files that it names.

    Attributes:
        name: of the study.
        base: the recipe that all trials begin from.
        tree: the base as its file has it, without defaults.
        variants: tried first, in order.
        space: the distributions to sample after them, by key.
        sampler: `tpe`, `random` or `grid`.
        trials: in total; None only where there is nothing to sample.
        seed: of the sampler.
        storage: a database's URL, or None.
        against: name of the variant that all are held against, or None.
    """

    name: str
    base: Recipe
    tree: dict[str, Any]
    variants: tuple[Variant, ...]
    space: dict[str, BaseDistribution]
    sampler: str
    trials: int | None
    seed: int
    storage: str | None
    against: str | None = None

    def recipe(self, overrides: Mapping[str, Any], where: str = "trial") -> Recipe:
        """Return the base with some keys changed.

        Raises:
            TutelageError: a key or a value is not valid in a recipe.
        """
        changed = copy.deepcopy(self.tree)
        try:
            set_keys(changed, copy.deepcopy(dict(overrides)).items())
        except TutelageError as error:
            raise TutelageError(f"{where}: {error}") from None
        return parse_recipe(changed, where)

    def record(self) -> dict[str, Any]:
        """Return what must be the same when a study is continued."""
        return {
            "base": self.base.model_dump(mode="json"),
            "search": {key: repr(distribution) for key, distribution in self.space.items()},
            "sampler": self.sampler,
        }


def load_study(
    path: Path,
    overrides: Sequence[str] = (),
    trials: int | None = None,
    name: str | None = None,
    seeds: int | None = None,
    against: str | None = None,
    only: Sequence[str] = (),
) -> Plan:
    """Read a study's file and the files that it names, and validate all variants and the ends of the search space.

    Args:
        path: of the YAML file.
        overrides: ``key.key=value`` each, for the base recipe.
        trials: number of trials in total, instead of the file's.
        name: name of the study, instead of the file's.
        seeds: number of seeds of each variant, instead of the file's.
        against: name of the variant that all are held against, instead of the file's.
        only: names of the variants to run; none: all of them.

    Raises:
        TutelageError: the file or a recipe is not valid; the message names the file and the key.
    """
    try:
        file = StudyRecipe.model_validate(read_yaml(path))
    except ValidationError as error:
        raise TutelageError(f"{path}: {first_error(error, StudyRecipe, ': ')}") from None
    name = name or file.name or path.stem
    if not NAME.fullmatch(name):
        raise TutelageError(f"{path}: name {name!r}: use letters, digits and . _ - + @ = only")
    tree, source = _base(file, path)
    set_keys(tree, map(parse_override, overrides))
    space = {key: _distribution(key, value, path) for key, value in file.search.items()}
    grid = list(_grid(space, path)) if file.sampler == "grid" and space else []
    plan = Plan(
        name,
        parse_recipe(tree, source),
        tree,
        (*_variants(file, path), *grid),
        {} if grid else space,
        file.sampler,
        trials or file.trials,
        file.seed,
        file.storage,
        against or file.against,
    )
    _check(plan, path)
    if only:
        for one in only:
            _known(one, plan, f"{path}: --variant {one!r}")
        plan = replace(plan, variants=tuple(v for v in plan.variants if v.name in only))
    return _with_seeds(plan, seeds or file.seeds, path)


def _known(name: str, plan: Plan, where: str) -> None:
    """Check that a variant is one of the study's."""
    names = [variant.name for variant in plan.variants]
    if name not in names:
        raise TutelageError(f"{where}: no variant has this name; there are {', '.join(names) or 'none'}")


def _with_seeds(plan: Plan, seeds: int, path: Path) -> Plan:
    """Add the variants with the seeds after the base's: first all with the second seed, then all with the third, ...

    Those with the first seed stay as they are, so that a study that was begun with one seed goes on.
    """
    if seeds == 1:
        return plan
    if plan.space:
        raise TutelageError(
            f"{path}: seeds: variants and a grid have several seeds, a search has one for each trial"
        )
    first = plan.base.train.seed
    for variant in plan.variants:
        if "train.seed" in variant.overrides or plan.recipe(variant.overrides).train.seed != first:
            raise TutelageError(
                f"{path}: variant {variant.name!r}: sets train.seed, which --seeds sets; leave out one of them"
            )
    names = {variant.name for variant in plan.variants}
    added = []
    for seed in range(first + 1, first + seeds):
        for variant in plan.variants:
            name = f"{variant.name}-seed-{seed}"
            if name in names:
                raise TutelageError(
                    f"{path}: variant {name!r}: a variant with another seed gets this name; give yours another one"
                )
            added.append(Variant(name, variant.overrides | {"train.seed": seed}, variant.name))
    return replace(plan, variants=(*plan.variants, *added))


def _base(file: StudyRecipe, path: Path) -> tuple[dict[str, Any], str]:
    if isinstance(file.base, str):
        place = path.parent / file.base
        return rename_keys(read_yaml(place), str(place)), str(place)
    source = f"{path}: base"
    return rename_keys(file.base, source), source


def _variants(file: StudyRecipe, path: Path) -> list[Variant]:
    found: dict[str, Variant] = {}
    for number, entry in enumerate(file.variants, start=1):
        name = str(entry.get("name", ""))
        if not NAME.fullmatch(name):
            raise TutelageError(
                f"{path}: variant {number}: give it a name with letters, digits and . _ - + @ = only"
            )
        if name in found:
            raise TutelageError(f"{path}: two variants are named {name!r}; give each its own name")
        found[name] = Variant(name, {key: value for key, value in entry.items() if key != "name"})
    return list(found.values())


def _distribution(key: str, value: Any, path: Path) -> BaseDistribution:
    if isinstance(value, list) and value:
        return CategoricalDistribution([_choice(entry) for entry in value])
    if not isinstance(value, dict):
        raise TutelageError(f"{path}: search.{key}: give a list of choices, or low and high of a range")
    try:
        return Range.model_validate(value).distribution()
    except ValidationError as error:
        raise TutelageError(f"{path}: search.{key}: {first_error(error, Range, ': ')}") from None
    except ValueError as error:  # Optuna's: low above high, log of zero, both step and log
        raise TutelageError(f"{path}: search.{key}: {one_line(error)}") from None


def _choice(entry: Any) -> Any:
    """Convert a choice to a plain value, which Optuna needs: others become YAML text, which `value_of` reads."""
    plain = entry is None or isinstance(entry, bool | int | float)
    return entry if plain else yaml.safe_dump(entry, default_flow_style=True).removesuffix("...\n").strip()


def value_of(parameter: Any) -> Any:
    """Return the recipe's value of a trial's parameter."""
    return read_value(parameter) if isinstance(parameter, str) else parameter


def _grid(space: Mapping[str, BaseDistribution], path: Path) -> Iterator[Variant]:
    """Yield every combination of the choices as a variant."""
    for key, distribution in space.items():
        if not isinstance(distribution, CategoricalDistribution):
            raise TutelageError(f"{path}: search.{key}: a grid needs a list of choices")
    choices = [d.choices for d in space.values() if isinstance(d, CategoricalDistribution)]
    for place, values in enumerate(itertools.product(*choices), start=1):
        yield Variant(f"grid-{place}", dict(zip(space, map(value_of, values), strict=True)))


def _check(plan: Plan, path: Path) -> None:
    """Check that all variants and the ends of the space are valid recipes, and that all can be ranked together."""
    if not plan.variants and not plan.space:
        raise TutelageError(f"{path}: there are neither variants nor a search; add one of them")
    if plan.space and plan.trials is None:
        raise TutelageError(f"{path}: trials: set the number of trials (or use --trials)")
    if plan.against:
        _known(plan.against, plan, f"{path}: against {plan.against!r}")
    tried = [(f"variant {v.name!r}", v.overrides) for v in plan.variants]
    for key, distribution in plan.space.items():
        tried += [(f"search.{key}", {key: value}) for value in _ends(distribution)]
    for what, overrides in tried:
        where = f"{path}: {what}"
        recipe = plan.recipe(overrides, where)
        _comparable(plan.base, recipe, where)


def _ends(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return [value_of(choice) for choice in distribution.choices]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return [distribution.low, distribution.high]


def _comparable(base: Recipe, recipe: Recipe, where: str) -> None:
    """Check that a trial can be ranked with the base: by the same metric, on the same images."""
    fixed = SAME_IMAGES if base.data.val and base.data.test else SAME_IMAGES | {"train"}
    for key in sorted(fixed):
        if getattr(recipe.data, key) != getattr(base.data, key):
            raise TutelageError(
                f"{where}: data.{key} decides which images are used for model selection and final "
                "evaluation; it must be the same in all trials"
            )
    if recipe.selection.metric != base.selection.metric:
        raise TutelageError(f"{where}: selection.metric ranks the trials; it must be the same in all trials")
