"""Whether the device computes what the host expects."""

import hashlib
from typing import Callable, List, Tuple

from device_agent.protocol import Event, OutputDifference, Port, Progress, Verification, Verify
from device_agent.runtimes import load
from device_agent.samples import artifact_path, read_inputs, read_outputs
from device_agent.tensors import Comparison, check_size


def verify(request: Verify, emit: Callable[[Event], None]) -> None:
    """Runs every golden sample and compares; emits Progress and one Verification.

    Raises:
        Exception: Whatever the files and the runtime raise; `failures.failure_of` sorts it.
    """
    plan = request.plan
    emit(Progress("load", 0))
    path = artifact_path(plan)
    runtime = load(plan.runtime)
    session = runtime.open(path, plan)
    comparisons = [Comparison(port) for port in plan.outputs]
    digests: List[Tuple[str, ...]] = []
    for index in range(len(plan.samples)):
        session.feed(session.prepare(read_inputs(plan, index)))
        session.invoke()
        computed = session.outputs()
        results = zip(comparisons, plan.outputs, computed, read_outputs(plan, index))
        for comparison, port, got, expected in results:
            check_size(got, port, "what {} computed".format(plan.runtime))
            comparison.add(got, expected)
        digests.append(tuple(hashlib.sha256(got).hexdigest() for got in computed))
        emit(Progress("verify", index + 1, len(plan.samples)))
    differences = tuple(comparison.summary() for comparison in comparisons)
    emit(
        Verification(
            ok=all(_is_within(found, port, request) for found, port in zip(differences, plan.outputs)),
            samples=len(plan.samples),
            outputs=differences,
            runtime_version=runtime.version,
            providers=session.providers,
            digests=tuple(digests),
        )
    )


def _is_within(found: OutputDifference, port: Port, request: Verify) -> bool:
    if found.not_finite:
        return False
    if found.worst_steps is not None:
        return found.worst_steps <= request.tolerance_steps
    if "float" in port.dtype:
        return found.worst_relative <= request.tolerance_relative
    return found.differing == 0  # integers without a step are indices or flags
