"""A measured row, and how tables show it."""

import dataclasses
import functools
from typing import Any

HEADERS = ("case", "ours", "peer", "ratio", "aim", "", "note")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement of this library beside a peer's; smaller is better.

    Attributes:
      case: What was measured.
      ours: This library's figure.
      peer: The peer's figure; `None` where there is none.
      peer_name: The peer.
      unit: Unit of both figures; "s" is seconds per call.
      aim: The ratio wanted, or `None`.
      note: What else was measured; other aims, each "met" or "missed".
      reason: Why the aim is missed, as a profile shows; told only where it is.
      details: The note's numbers, and what plots need, by name.
      subject: The file that measures it; set when it runs.
      command: What measures it again; set when it runs.
    """

    case: str
    ours: float
    peer: float | None = None
    peer_name: str = ""
    unit: str = "s"
    aim: float | None = None
    note: str = ""
    reason: str = ""
    details: dict[str, float] = dataclasses.field(default_factory=dict)
    subject: str = ""
    command: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times better ours is than the peer."""
        return None if self.peer is None else self.peer / self.ours

    @property
    def missed(self) -> bool:
        """Whether there is an aim that the ratio is below."""
        if self.aim is None or self.ratio is None:
            return False
        return self.ratio < self.aim

    @functools.cached_property
    def cells(self) -> tuple[str, ...]:
        """The texts of the columns in `HEADERS`."""
        judged = self.aim is not None and self.ratio is not None
        return (
            self.case,
            _quantity(self.ours, self.unit),
            ""
            if self.peer is None
            else f"{_quantity(self.peer, self.unit)} ({self.peer_name})",
            "" if self.ratio is None else f"{self.ratio:.2f}",
            "" if self.aim is None else f"{self.aim:.2f}",
            verdict(not self.missed) if judged else "",
            "; ".join(filter(None, (self.note, self.reason if self.missed else ""))),
        )

    def to_json(self) -> dict[str, Any]:
        """All fields, and the ratio."""
        return {**dataclasses.asdict(self), "ratio": self.ratio}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Row":
        """Inverse of `to_json`."""
        return cls(**{name: x for name, x in fields.items() if name != "ratio"})


def verdict(met: bool) -> str:
    """The word for an aim that was met or missed."""
    return "met" if met else "missed"


def seconds_text(seconds: float) -> str:
    """Seconds with three digits, as s, ms or us."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:#.3g} {unit}".replace(". ", " ")
    return f"{seconds * 1e6:#.3g} us".replace(". ", " ")


def _quantity(value: float, unit: str) -> str:
    return seconds_text(value) if unit == "s" else f"{value:.4g} {unit}"
