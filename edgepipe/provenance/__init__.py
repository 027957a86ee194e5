"""How a run came about, and what came out when it was done again: the records."""

from edgepipe.provenance.environment import Change, Environment, changes, digest_path
from edgepipe.provenance.exported import Contents, Exported, LeftOut
from edgepipe.provenance.origin import Origin
from edgepipe.provenance.reproduction import Check, Reproduction, State

__all__ = [
    "Change",
    "Check",
    "Contents",
    "Environment",
    "Exported",
    "LeftOut",
    "Origin",
    "Reproduction",
    "State",
    "changes",
    "digest_path",
]
