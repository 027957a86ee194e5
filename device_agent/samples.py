"""Reads the golden samples of a plan."""

import os
from typing import List, Sequence

from device_agent.records import Plan, Port
from device_agent.tensors import check_size


def read_inputs(plan: Plan, index: int) -> List[bytes]:
    """The inputs of one sample.

    Raises:
        FileNotFoundError: A file is missing.
        TensorMismatch: A file's size is not that of its port.
    """
    return _read(plan.folder, plan.samples[index].inputs, plan.inputs)


def read_outputs(plan: Plan, index: int) -> List[bytes]:
    """What the host expects of one sample; raises like `read_inputs`."""
    return _read(plan.folder, plan.samples[index].outputs, plan.outputs)


def _read(folder: str, names: Sequence[str], ports: Sequence[Port]) -> List[bytes]:
    tensors = []
    for name, port in zip(names, ports):
        with open(os.path.join(folder, name), "rb") as file:
            tensor = file.read()
        check_size(tensor, port, name)
        tensors.append(tensor)
    return tensors


def artifact_path(plan: Plan) -> str:
    """The model file.

    Raises:
        FileNotFoundError: It is missing; said here as runtimes say it in ten ways.
    """
    path = os.path.join(plan.folder, plan.artifact)
    os.stat(path)
    return path
