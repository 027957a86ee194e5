"""What a power reader is."""

from typing import Callable, NamedTuple, Tuple


class Unavailable(Exception):
    """This machine lacks the sensor, or does not let the agent read it; the text says which."""


class Source(NamedTuple):
    """A sensor that was read once with success.

    Attributes:
        name: One of POWER_SOURCES.
        kind: "sampled" or "counter".
        coverage: What the figure includes: "soc", "board" or "wall".
        rails: The rails that are summed.
        period_ns: How often to read it.
        read: Gives the power in mW (sampled) or the energy in uJ since the first reading (counter);
            raises OSError or ValueError where a reading fails.
        wrap_uj: Where the device's own counter restarts; 0 for a sampled source.
        note: What the user should know of the figure.
    """

    name: str
    kind: str
    coverage: str
    rails: Tuple[str, ...]
    period_ns: int
    read: Callable[[], float]
    wrap_uj: int = 0
    note: str = ""


def read_number(path: str) -> int:
    """Reads the integer in a file of /sys.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds no integer.
    """
    with open(path) as file:
        return int(file.read())
