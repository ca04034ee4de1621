"""A measured row."""

import dataclasses

from experiments.training.records import Record


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

    def to_record(self) -> Record:
        """All fields, and the ratio: how many times better ours is than the peer."""
        ratio = None if self.peer is None else self.peer / self.ours
        return {**dataclasses.asdict(self), "ratio": ratio}
