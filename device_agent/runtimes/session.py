"""What every inference runtime looks like to the agent."""

from typing import Any, List, Sequence, Tuple

from device_agent.records import Plan


class RuntimeMissing(Exception):
    """The runtime is not installed, or its import fails; the text says which."""


class RuntimeTooOld(Exception):
    """The runtime does not know an op version of the model; the text is the runtime's own."""


class Session:
    """A loaded model.

    `prepare` and `feed` stand outside of the timed section, `invoke` is all of it.

    Attributes:
        providers: What the model runs on.
        timed: What `invoke` comprises, for people.
    """

    providers: Tuple[str, ...] = ()
    timed = ""

    def prepare(self, tensors: Sequence[bytes]) -> Any:
        """Turns raw little-endian tensors, one for each input port, into what `feed` takes."""
        raise NotImplementedError

    def feed(self, prepared: Any) -> None:
        """Makes these the inputs of the next `invoke`."""
        raise NotImplementedError

    def invoke(self) -> None:
        """Runs the model once."""
        raise NotImplementedError

    def outputs(self) -> List[bytes]:
        """The outputs of the last `invoke`: raw little-endian tensors, one for each output port."""
        raise NotImplementedError


class Runtime:
    """An imported runtime.

    Attributes:
        version: Its version, "" where it does not tell.
    """

    version = ""

    def open(self, path: str, plan: Plan) -> Session:
        """Loads the model file, ready to run.

        Raises:
            RuntimeTooOld: It does not know an op version of the model.
        """
        raise NotImplementedError
