from dataclasses import dataclass
@dataclass(frozen=True)
class Rung:
    name: str
    family: str
    order: int | None
    seeds: int
