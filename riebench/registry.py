"""Objects that configurations, options and tables call by a name.

They ship with riebench, or come from installed packages or plug-in files. What ships is listed at the bottom, lazily,
so that listing names imports neither torch nor a model. Other people's packages add to it by entry points
(`importlib.metadata`), in the group that each registry names. Installed packages are looked through once, when a
registry is first asked for something; a package's code runs only when one of its names is used.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Generic, TypeVar, cast

from riebench.errors import RiebenchError, foreign_code, near_match

T = TypeVar("T")


class PackageError(RiebenchError):
    """Error for an installed package whose object cannot be imported.

    The message names the package and the reason.
    """


@dataclass(frozen=True)
class Package:
    """An installed distribution.

    Attributes:
        name: as its metadata spells it.
        version: likewise.
    """

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class PackageEntry:
    """One entry point of an installed package.

    Attributes:
        package: whose it is.
        target: "module:attribute".
        others: packages that state the same name in the same group.
    """

    package: Package
    target: str
    others: tuple[Package, ...] = ()


_importing: list[Package] = []
"""Packages whose code is being imported at the moment, the innermost last."""

_registries: list[Registry[Any]] = []
"""Every registry with a group."""


@lru_cache(maxsize=1)
def _installed() -> dict[str, dict[str, PackageEntry]]:
    """Return the entry points of all installed packages: group -> name -> entry."""
    found: dict[str, dict[str, PackageEntry]] = {registry.group: {} for registry in _registries}
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions():
        points = [point for point in distribution.entry_points if point.group in found]
        # A package that is found twice on the path is the one that comes first, as with imports.
        if not points or distribution.name.lower() in seen:
            continue
        seen.add(distribution.name.lower())
        package = Package(distribution.name, distribution.version)
        for point in points:
            entry = PackageEntry(package, point.value)
            first = found[point.group].setdefault(point.name, entry)
            if first is not entry:
                found[point.group][point.name] = replace(first, others=(*first.others, package))
    return found


class Registry(Generic[T]):
    """Table of named objects of one kind, some imported only on first use.

    Args:
        kind: what the objects are, for messages ("method", "metric", ...).
        group: entry-point group through which installed packages add objects; empty for none.
        base: "module:class" that objects of packages must be instances or subclasses of; empty for anything.
    """

    def __init__(self, kind: str, group: str = "", base: str = "") -> None:
        self.kind = kind
        self.group = group
        self.base = base
        self._objects: dict[str, T] = {}
        self._lazy: dict[str, str] = {}
        self._registered_by: dict[str, Package] = {}
        self._defined: set[str] = set()
        self._failed: dict[str, PackageError] = {}
        if group:
            _registries.append(self)

    def register(self, name: str) -> Callable[[T], T]:
        """Enter an object under a name, as a decorator.

        Raises:
            ValueError: if the name is taken by another object. A lazy entry's own object may fill its name.
            RiebenchError: if an installed package has taken the name, or a package takes a name that is taken.
        """

        def enter(thing: T) -> T:
            package = _importing[-1] if _importing else None
            if name in self._objects:
                if package is not None:
                    raise RiebenchError(self._taken(name, package))
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            if name not in self._lazy:
                entry = self._entries().get(name)
                if package is None and entry is not None and _is_defined_by(entry, thing):
                    # The package's own module, imported by its tests before anybody asked for the name.
                    package = entry.package
                if package is None and entry is not None:
                    raise RiebenchError(
                        f"the {self.kind} {name!r} is also in the installed package {entry.package}; uninstall it, or "
                        "choose another name"
                    )
                if package is not None:
                    if entry is not None and entry.package != package:
                        raise RiebenchError(self._taken(name, package))
                    self._registered_by[name] = package
            self._objects[name] = thing
            return thing

        return enter

    def define(self, name: str, thing: T) -> None:
        """Enter an object made in the running session, such as a notebook.

        It takes the place of one that was entered so before: a notebook's cell is executed again and again.

        Raises:
            RiebenchError: if the name belongs to riebench, an installed package or a plug-in file.
        """
        is_foreign = name in self._objects and name not in self._defined
        if is_foreign or name in self._lazy or name in self._entries():
            raise RiebenchError(f"there is a {self.kind} {name!r} already, which stays as it is; choose another name")
        self._objects[name] = thing
        self._defined.add(name)

    def defined(self) -> frozenset[str]:
        """Return the names that `define` entered."""
        return frozenset(self._defined)

    def register_lazy(self, name: str, target: str) -> None:
        """Enter "module:attribute", imported at the first `get`.

        Raises:
            ValueError: if the name is taken or the target has no colon.
        """
        if name in self._lazy or name in self._objects:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        if ":" not in target:
            raise ValueError(f"{self.kind} {name!r}: {target!r} is not 'module:attribute'")
        self._lazy[name] = target

    def get(self, name: str) -> T:
        """Return the object of that name.

        Raises:
            PackageError: if it comes from an installed package that cannot be imported.
            RiebenchError: if there is none (names the nearest match), or if several packages, or riebench and a
                package, have the same name.
        """
        entry = self._entries().get(name)
        if entry is not None:
            self._refuse_conflict(name, entry)
        if name not in self._objects:
            if name in self._lazy:
                # Importing may itself run `register(name)`; either way the attribute is the object.
                self._objects.setdefault(name, cast(T, _attribute(self._lazy[name])))
            elif entry is not None:
                self._objects[name] = self._load(name, entry)
            else:
                raise RiebenchError(f"unknown {self.kind} {name!r}{near_match(name, self.names())}")
        return self._objects[name]

    def names(self) -> tuple[str, ...]:
        """Return all names, sorted, without importing anything."""
        return tuple(sorted({*self._objects, *self._lazy, *self._entries()}))

    def __contains__(self, name: object) -> bool:
        return name in self._objects or name in self._lazy or name in self._entries()

    def usable(self, names: Iterable[str] | None = None) -> dict[str, T]:
        """Return objects by name, without those of packages that cannot be imported.

        `failures` says which those are, and why.

        Args:
            names: which objects; None for all.

        Raises:
            RiebenchError: if two packages, or riebench and a package, have the same name.
        """
        found = {}
        for name in self.names() if names is None else names:
            try:
                found[name] = self.get(name)
            except PackageError:
                continue
        return found

    def failures(self) -> dict[str, str]:
        """Return what could not be imported so far.

        Returns:
            Name -> one line that names the package and the reason.
        """
        return {name: str(error) for name, error in sorted(self._failed.items())}

    def shipped(self) -> tuple[str, ...]:
        """Return the names that riebench itself brings lazily, sorted."""
        return tuple(sorted(self._lazy))

    def package(self, name: str) -> Package | None:
        """Return the installed package that an object comes from.

        None stands for riebench itself and for plug-in files.
        """
        entry = self._entries().get(name)
        return self._registered_by.get(name) if entry is None else entry.package

    def from_packages(self) -> tuple[str, ...]:
        """Return the names that installed packages state, sorted, importing nothing."""
        return tuple(sorted(self._entries()))

    def _entries(self) -> dict[str, PackageEntry]:
        return _installed()[self.group] if self.group else {}

    def _taken(self, name: str, package: Package) -> str:
        return (
            f"the package {package} takes the name of the {self.kind} {name!r}, which is there already; "
            "uninstall it, or use a version with another name"
        )

    def _refuse_conflict(self, name: str, entry: PackageEntry) -> None:
        if name in self._lazy:
            raise RiebenchError(self._taken(name, entry.package))
        if entry.others:
            several = " and ".join(sorted(str(package) for package in (entry.package, *entry.others)))
            raise RiebenchError(
                f"the {self.kind} {name!r} is in several installed packages, {several}; uninstall all but one"
            )

    def _load(self, name: str, entry: PackageEntry) -> T:
        """Import an installed package's object.

        Raises:
            PackageError: naming package and reason; the package is not tried again in this process.
            RiebenchError: if its code takes a name that is not its own.
        """
        if name in self._failed:
            raise self._failed[name]
        before = {registry.group: set(registry._objects) for registry in _registries}
        _importing.append(entry.package)
        try:
            with foreign_code("its code"):
                thing = _attribute(entry.target)
            # Formats are registered by their decorator, which leaves the function as it is.
            thing = self._objects.get(name, thing)
            self._check(name, thing)
            _check_shipped(before, entry.package)
        except Exception as error:
            for registry in _registries:
                registry._forget(entry.package, before[registry.group])
            # An error of riebench says itself what is wrong, such as a name that is taken.
            why = str(error) if isinstance(error, RiebenchError) else f"{type(error).__name__}: {error}"
            self._failed[name] = PackageError(f"{self.kind} {name!r} of the package {entry.package} is unusable: {why}")
            raise self._failed[name] from error
        finally:
            _importing.pop()
        return cast(T, thing)

    def _check(self, name: str, thing: Any) -> None:
        """Check that a package's object fits its registry and its entry point.

        Raises:
            RiebenchError: if it is of another kind, or bears another name than the entry point.
        """
        if self.base:
            base = _attribute(self.base)
            if not (isinstance(thing, base) or (isinstance(thing, type) and issubclass(thing, base))):
                raise RiebenchError(f"it is no {base.__name__}; see riebench's documents on a new {self.kind}")
        own = getattr(thing, "name", name)
        if own != name:
            raise RiebenchError(f"it calls itself {own!r}; entry point and object must have the same name")

    def _foreign(self, before: set[str]) -> list[str]:
        """Return shipped names that were filled since by objects that do not ship.

        Args:
            before: names whose objects were there already.
        """
        filled = [name for name in self._lazy if name in self._objects and name not in before]
        return [name for name in filled if not _is_own(self._lazy[name], self._objects[name])]

    def _forget(self, package: Package, before: set[str]) -> None:
        """Drop the objects that a package has registered since.

        A failed import then leaves nothing behind.

        Args:
            package: whose import failed.
            before: names whose objects were there before it.
        """
        for name in [*self._objects.keys() - before]:
            if name in self._lazy:
                theirs = not _is_own(self._lazy[name], self._objects[name])
            else:
                theirs = self.package(name) == package
            if theirs:
                del self._objects[name]
                self._registered_by.pop(name, None)


def _check_shipped(before: dict[str, set[str]], package: Package) -> None:
    """Check that a package has not put objects of its own under shipped names.

    Args:
        before: group -> names whose objects were there before the package was imported.
        package: what was imported.

    Raises:
        RiebenchError: naming the package and the first such name.
    """
    for registry in _registries:
        for name in registry._foreign(before[registry.group]):
            raise RiebenchError(registry._taken(name, package))


def _attribute(target: str) -> Any:
    """Import the object that "module:attribute" names; an attribute may have dots."""
    module, _, attributes = target.partition(":")
    found: Any = importlib.import_module(module.strip())
    for attribute in filter(None, attributes.strip().split(".")):
        found = getattr(found, attribute)
    return found


def _is_defined_by(entry: PackageEntry, thing: Any) -> bool:
    """Check whether an object is defined in the module that an entry point names."""
    module, _, _ = entry.target.partition(":")
    return getattr(getattr(thing, "function", thing), "__module__", None) == module.strip()


def _is_own(target: str, thing: Any) -> bool:
    """Check whether an object is the one that a lazy target names, importing nothing."""
    module, _, attribute = target.partition(":")
    return getattr(sys.modules.get(module), attribute, None) is thing


METHODS: Registry[Any] = Registry("method", "riebench.methods", "riebench.methods.base:Method")
METRICS: Registry[Any] = Registry("metric", "riebench.metrics", "riebench.scoring.metrics.base:Metric")
NETWORKS: Registry[Any] = Registry("network", "riebench.networks", "riebench.scoring.metrics.networks:Network")
SAE_FORMATS: Registry[Any] = Registry("SAE format", "riebench.sae_formats", "riebench.saes.readers:SaeFormat")
REGIONS: Registry[Any] = Registry("region provider", "riebench.regions")
MODEL_FAMILIES: Registry[Any] = Registry(
    "model family", "riebench.model_families", "riebench.models.families.base:Family"
)
MODEL_PRESETS: Registry[Any] = Registry("model preset", "riebench.model_presets", "riebench.models.spec:Preset")

DEFAULT_FAMILY = "sdxl"
"""Model family whose blocks are meant where no model is named."""

for _name, _target in {
    "no_edit": "riebench.methods.controls:no_edit",
    "target_prompt": "riebench.methods.controls:target_prompt",
    "random_features": "riebench.methods.controls:random_features",
    "sae": "riebench.methods.features:sae",
    "sae_fixed": "riebench.methods.features:sae_fixed",
    "activation_patch": "riebench.methods.activations:activation_patch",
    "replace_patches": "riebench.methods.patches:replace_patches",
    "mean_steering": "riebench.methods.activations:mean_steering",
    "neurons": "riebench.methods.activations:neurons",
    "embed_lerp": "riebench.methods.prompting.mixtures:embed_lerp",
    "prompt_switch": "riebench.methods.prompting.mixtures:prompt_switch",
    "masked_target": "riebench.methods.prompting.mixtures:masked_target",
    "random_directions": "riebench.methods.controls:random_directions",
    "wrong_example": "riebench.methods.controls:wrong_example",
    "concept_steering": "riebench.methods.activations:concept_steering",
    "mean_direction": "riebench.methods.supervised.directions:mean_direction",
    "probe_direction": "riebench.methods.supervised.directions:probe_direction",
    "text_direction": "riebench.methods.prompting.text_direction:text_direction",
    "reft_r1": "riebench.methods.supervised.reft:reft_r1",
    "lora_slider": "riebench.methods.supervised.lora:lora_slider",
    "img2img": "riebench.methods.editors:img2img",
    "p2p": "riebench.methods.prompting.prompt_to_prompt:p2p",
    "ledits_pp": "riebench.methods.editors:ledits_pp",
    "adversarial": "riebench.methods.editors:adversarial",
}.items():
    METHODS.register_lazy(_name, _target)

for _name, _target in {
    "clip_target": "riebench.scoring.metrics.clip:clip_target",
    "clip_gain": "riebench.scoring.metrics.clip:clip_gain",
    "clip_gain_2": "riebench.scoring.metrics.clip:clip_gain_2",
    "clip_margin": "riebench.scoring.metrics.clip:clip_margin",
    "clip_margin_2": "riebench.scoring.metrics.clip:clip_margin_2",
    "clip_direction": "riebench.scoring.metrics.clip:clip_direction",
    "clip_image": "riebench.scoring.metrics.clip:clip_image",
    "clip_region_gain": "riebench.scoring.metrics.clip:clip_region_gain",
    "clip_selectivity": "riebench.scoring.metrics.probes:clip_selectivity",
    "lpips": "riebench.scoring.metrics.lpips:lpips",
    "lpips_target": "riebench.scoring.metrics.lpips:lpips_target",
    "lpips_bg": "riebench.scoring.metrics.lpips:lpips_bg",
    "mse_bg": "riebench.scoring.metrics.pixel:mse_bg",
    "psnr_bg": "riebench.scoring.metrics.pixel:psnr_bg",
    "ssim_bg": "riebench.scoring.metrics.pixel:ssim_bg",
    "judge_target": "riebench.scoring.metrics.judge:judge_target",
    "judge_kept": "riebench.scoring.metrics.judge:judge_kept",
    "judge_artifact": "riebench.scoring.metrics.judge:judge_artifact",
    "structure": "riebench.scoring.metrics.structure:structure",
    "dreamsim": "riebench.scoring.metrics.pretrained.dreamsim:dreamsim",
    "vqa_target": "riebench.scoring.metrics.pretrained.vqa:vqa_target",
    "vqa_gain": "riebench.scoring.metrics.pretrained.vqa:vqa_gain",
    "editscore": "riebench.scoring.metrics.pretrained.editscore:editscore",
    "editscore_followed": "riebench.scoring.metrics.pretrained.editscore:editscore_followed",
    "editscore_kept": "riebench.scoring.metrics.pretrained.editscore:editscore_kept",
    "dino_image": "riebench.scoring.metrics.pretrained.dino:dino_image",
    "dinov2_image": "riebench.scoring.metrics.pretrained.dino:dinov2_image",
    "dinov3_image": "riebench.scoring.metrics.pretrained.dino:dinov3_image",
    "pick_target": "riebench.scoring.metrics.pretrained.preference:pick_target",
    "pick_gain": "riebench.scoring.metrics.pretrained.preference:pick_gain",
    "hps_target": "riebench.scoring.metrics.pretrained.preference:hps_target",
    "hps_gain": "riebench.scoring.metrics.pretrained.preference:hps_gain",
    "paper_text_target": "riebench.scoring.metrics.clip:paper_text_target",
    "paper_text_source": "riebench.scoring.metrics.clip:paper_text_source",
    "paper_image_source": "riebench.scoring.metrics.clip:paper_image_source",
    "paper_image_target": "riebench.scoring.metrics.clip:paper_image_target",
    "pie_structure": "riebench.scoring.metrics.piebench:pie_structure",
    "pie_psnr": "riebench.scoring.metrics.piebench:pie_psnr",
    "pie_lpips": "riebench.scoring.metrics.piebench:pie_lpips",
    "pie_mse": "riebench.scoring.metrics.piebench:pie_mse",
    "pie_ssim": "riebench.scoring.metrics.piebench:pie_ssim",
    "pie_clip_target": "riebench.scoring.metrics.piebench:pie_clip_target",
    "pie_clip_region": "riebench.scoring.metrics.piebench:pie_clip_region",
}.items():
    METRICS.register_lazy(_name, _target)

for _name, _target in {
    "clip": "riebench.scoring.metrics.clip:ClipNetwork",
    "clip2": "riebench.scoring.metrics.clip:SecondClipNetwork",
    "clip-half": "riebench.scoring.metrics.clip:HalfClipNetwork",
    "lpips": "riebench.scoring.metrics.lpips:LpipsNetwork",
    "squeezenet": "riebench.scoring.metrics.lpips:SqueezeNetwork",
    "dino": "riebench.scoring.metrics.structure:DinoNetwork",
    "judge": "riebench.scoring.metrics.judge:ToyJudge",
    "dreamsim": "riebench.scoring.metrics.pretrained.dreamsim:DreamSimNetwork",
    "vqa": "riebench.scoring.metrics.pretrained.vqa:VqaNetwork",
    "editscore": "riebench.scoring.metrics.pretrained.editscore:EditScoreNetwork",
    "dinov2": "riebench.scoring.metrics.pretrained.dino:Dinov2Network",
    "dinov3": "riebench.scoring.metrics.pretrained.dino:Dinov3Network",
    "pickscore": "riebench.scoring.metrics.pretrained.preference:PickScoreNetwork",
    "hps": "riebench.scoring.metrics.pretrained.preference:HpsNetwork",
}.items():
    NETWORKS.register_lazy(_name, _target)

REGIONS.register_lazy("attention", "riebench.generation.regions.masks:attention_regions")
REGIONS.register_lazy("grounded-sam", "riebench.generation.regions.grounding:GroundedSam")
REGIONS.register_lazy("clipseg", "riebench.generation.regions.grounding:ClipSeg")

MODEL_FAMILIES.register_lazy("sdxl", "riebench.models.families.sdxl.family:FAMILY")
MODEL_FAMILIES.register_lazy("sd", "riebench.models.families.unet.sd.family:FAMILY")
MODEL_FAMILIES.register_lazy("flux", "riebench.models.families.flux.family:FAMILY")
MODEL_FAMILIES.register_lazy("sd3", "riebench.models.families.tokens.sd3.family:FAMILY")
MODEL_FAMILIES.register_lazy("zimage", "riebench.models.families.tokens.zimage.family:FAMILY")
MODEL_FAMILIES.register_lazy("pixart", "riebench.models.families.tokens.cross_attention.pixart.family:FAMILY")
MODEL_FAMILIES.register_lazy("sana", "riebench.models.families.tokens.cross_attention.sana.family:FAMILY")
MODEL_FAMILIES.register_lazy("sana-sprint", "riebench.models.families.tokens.cross_attention.sana.family:SPRINT_FAMILY")
MODEL_FAMILIES.register_lazy("qwen", "riebench.models.families.tokens.qwen.family:FAMILY")


def usable_families() -> tuple[Any, ...]:
    """Return the model families in the order in which they are asked.

    The default one comes first and those of installed packages last, so that none of these changes what a name or a
    folder means without it. Those that cannot be imported are missing.
    """
    found, shipped = MODEL_FAMILIES.usable(), MODEL_FAMILIES.shipped()
    return tuple(found[one] for one in sorted(found, key=lambda one: (one != DEFAULT_FAMILY, one not in shipped, one)))


def families_left_out() -> str:
    """Return the end of a message on a model or block of no family.

    It names the packages whose families cannot be imported, and why.
    """
    return "".join(f"; left out: {line}" for line in MODEL_FAMILIES.failures().values())
