"""Choice of the activations that are captured of source and target runs.

It keeps within the limits of `riebench.generation.memory`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from riebench.blocks import short_name, unit_site, usual_blocks
from riebench.generation.generator import Capture, Generator
from riebench.generation.hooks import known_sites, unit_layers
from riebench.generation.memory import PREFIX_KEPT, PREFIX_STEPS, Footprint, footprint, prefix_bytes
from riebench.generation.prefix import PrefixPlan
from riebench.generation.trace import Quantity
from riebench.generation.units import UnitRecorder, examples_with_units
from riebench.methods.base import ROLES, ExampleRuns
from riebench.methods.ranking import UnitMeter
from riebench.models.families.base import Family
from riebench.runs.plan import ExampleWork
from riebench.runs.prepare import PreparedSetting


class CapturePlan:
    """Choice of the activations that are captured, example by example.

    Args:
        generator: generator of pictures.
        prepared: configuration name -> configuration, ready to run.
        uses_attention: tells whether an example's masks need text attention.
    """

    def __init__(
        self,
        generator: Generator,
        prepared: Mapping[str, PreparedSetting],
        uses_attention: Callable[[ExampleWork], bool],
    ) -> None:
        self.generator = generator
        self.prepared = prepared
        self.uses_attention = uses_attention
        model = generator.model
        self._sites = known_sites(model.denoiser)
        self._shape = model.family.shape_of_pipeline(model.pipe)
        blocks = self._attention_blocks()
        # The usual blocks count even if a configuration uses only one of them, so that others change nothing.
        self._usual = self._footprint(blocks, blocks, blocks)

    def footprint(self, works: Sequence[ExampleWork]) -> Footprint:
        """Compute an upper bound on the activations that one example keeps."""
        updates, units = self._blocks(works)
        read = updates * len(self._beside())
        looked = self._attention_blocks() if self._any_uses_attention(works) else ()
        return self._footprint(updates, units, looked, read)

    def is_long(self, works: Sequence[ExampleWork]) -> bool:
        """Check whether captured numbers are kept in 16 bits."""
        return self._usual.long or self.footprint(works).long

    def bytes_held(self, works: Sequence[ExampleWork]) -> int:
        """Compute an upper bound on the bytes that each of some examples keeps."""
        nbytes = self.footprint(works).nbytes(long=self.is_long(works), metered=self._is_metered(works))
        plan = self.prefix(works)
        return nbytes + (0 if plan is None else self._prefix_bytes(plan))

    def prefix(self, works: Sequence[ExampleWork]) -> PrefixPlan | None:
        """Plan the part of source runs that edited runs may share.

        None if there are no edits.
        """
        names = dict.fromkeys(unit.setting.name for work in works for unit in work.units)
        users = [one for name in names if (one := self.prepared[name]).method.edits]
        if not users:
            return None
        inside = [one for one in users if one.method.reads_blocks]
        blocks = dict.fromkeys(short_name(block) for one in inside for block in one.setting.blocks)
        steps = self.generator.model.spec.steps
        starts = {0 if one.window is None else one.window[0] for one in inside}
        worth = tuple(sorted(start for start in starts if steps - start <= PREFIX_STEPS))
        plan = PrefixPlan(len(works), tuple(blocks) if worth else (), worth)
        return plan if self._prefix_bytes(plan) <= PREFIX_KEPT else PrefixPlan(len(works))

    def _prefix_bytes(self, plan: PrefixPlan) -> int:
        model = self.generator.model
        width = next(model.denoiser.parameters()).element_size()
        return prefix_bytes(
            self._shape, model.spec.size, model.spec.steps, plan.blocks, len(plan.steps), width, guided=model.guided
        )

    def units_to_keep(self, works: Sequence[ExampleWork]) -> UnitRecorder | None:
        """Return what takes the units that are too many for the trace.

        Those of the first examples, as many as the host's free memory allows; their rows are those of a batch of all
        source and then all target runs. None if there are no such units, or no memory for them.
        """
        count = self._count_with_units(works)
        return UnitRecorder([*range(count), *range(len(works), len(works) + count)]) if count else None

    def examples_at_once(self, works: Sequence[ExampleWork]) -> int:
        """Return how many of some examples are looked at together.

        As many as units can be kept of, rather than generating the runs of the others again; all where there are no
        such units, or no memory for those of one example.
        """
        return self._count_with_units(works) or len(works)

    def _count_with_units(self, works: Sequence[ExampleWork]) -> int:
        _, units = self._blocks(works)
        if not units or not self._is_metered(works):
            return 0
        width = next(self.generator.model.denoiser.parameters()).element_size()
        return examples_with_units(self.footprint(works).unit_bytes(width), len(works))

    def captures(self, works: Sequence[ExampleWork], recorder: UnitRecorder | None = None) -> list[Capture]:
        """List the captures of a pair: updates and units first, then text attention.

        Last come the units that are too many for the trace, if a recorder takes them.
        """
        updates, units = self._blocks(works)
        sites = () if self._is_metered(works) else self._unit_sites(units)
        looked = self._attention_blocks() if self._any_uses_attention(works) else ()
        long = self.is_long(works)
        keep: tuple[Quantity, ...] = ("update", *self._beside())
        found = [Capture((*updates, *sites), keep, long=long), Capture(looked, ("attention",), long=long)]
        return found if recorder is None else [*found, Capture(self._unit_sites(units), sink=recorder)]

    def reference_captures(self, work: ExampleWork) -> list[Capture]:
        """List the captures of an example that serves as a reference of others.

        They hold the updates of all blocks that any method looks at in references, what their SAEs read, and text
        attention if masks need it.
        """
        users = (one.setting for one in self.prepared.values() if "others" in one.method.needs)
        updates = tuple(dict.fromkeys(short_name(block) for setting in users for block in setting.blocks))
        looked = self._attention_blocks() if self._any_uses_attention([work]) else ()
        long = self._usual.long or self._footprint(updates, (), looked).long
        keep: tuple[Quantity, ...] = ("update", *self._beside())
        return [Capture(updates, keep, long=long), Capture(looked, ("attention",), long=long)]

    def _beside(self) -> tuple[Quantity, ...]:
        """Return what SAEs read beside updates, those of all configurations.

        Captures of one run are alike, so that the examples of all its configurations can share them.
        """
        return tuple(sorted({sae.reads for one in self.prepared.values() for sae in one.saes.values()} - {"update"}))

    @property
    def needs_latents(self) -> bool:
        """True if a method needs the latents of source and target runs."""
        return any("latents" in one.method.needs for one in self.prepared.values())

    def measure(self, work: ExampleWork) -> Callable[[ExampleRuns], UnitMeter] | None:
        """Return a function that measures the means of an example's units.

        The function reads the units that are kept on the host, or generates the pair once more. It serves units that
        are too many for the trace; None if there are none.
        """
        _, units = self._blocks([work])
        if not units or not self._is_metered([work]):
            return None
        sites = self._unit_sites(units)

        def meter(runs: ExampleRuns) -> UnitMeter:
            found = UnitMeter(lambda row, site: runs.positions(ROLES[row], site))
            if runs.units:
                for row, role in enumerate(ROLES):
                    found.read(row, runs.units[role], sites)
                return found
            prompts = [runs.example.source, runs.example.target]
            self.generator.generate(prompts, [work.noise] * 2, capture=Capture(sites, sink=found))
            return found

        return meter

    @property
    def unit_layers(self) -> dict[str, int]:
        """Number of feed-forward layers of each block with switched units."""
        users = (one.setting for one in self.prepared.values() if "units" in one.method.needs)
        blocks = {block for setting in users for block in setting.blocks}
        return {short_name(block): unit_layers(self.generator.model.denoiser, block) for block in blocks}

    def _blocks(self, works: Sequence[ExampleWork]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the blocks with captured updates and those with captured units."""
        updates: dict[str, None] = {}
        units: dict[str, None] = {}
        for name in dict.fromkeys(unit.setting.name for work in works for unit in work.units):
            one = self.prepared[name]
            blocks = dict.fromkeys(short_name(block) for block in one.setting.blocks)
            updates |= blocks if one.method.reads_blocks else {}
            units |= blocks if "units" in one.method.needs else {}
        return tuple(updates), tuple(units)

    def _footprint(
        self, updates: Sequence[str], units: Sequence[str], attention: Sequence[str], read: Sequence[str] = ()
    ) -> Footprint:
        spec = self.generator.model.spec
        return footprint(self._shape, spec.size, spec.steps, updates, units, attention, read)

    def _is_metered(self, works: Sequence[ExampleWork]) -> bool:
        return self._usual.metered or self.footprint(works).metered

    def _unit_sites(self, blocks: Sequence[str]) -> tuple[str, ...]:
        unet = self.generator.model.denoiser
        return tuple(unit_site(block, layer) for block in blocks for layer in range(unit_layers(unet, block)))

    def _any_uses_attention(self, works: Sequence[ExampleWork]) -> bool:
        return any(self.uses_attention(work) for work in works)

    def _attention_blocks(self) -> tuple[str, ...]:
        return attention_blocks(self._sites, self.generator.model.family)


def attention_blocks(sites: Sequence[str], family: Family) -> tuple[str, ...]:
    """Return the blocks whose text attention is used to find words.

    They are the usual ones, or all of a model without these, as far as their attention to the text can be looked at.

    Args:
        sites: all blocks of the denoiser.
        family: of the model.
    """
    readable = [site for site in sites if family.names.reads_text(site)]
    return usual_blocks(readable, family.name)
