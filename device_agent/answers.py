"""What the agent does for each request."""

import os
import platform
import sys
from typing import Union

from device_agent.failures import BadRequest, failure_of
from device_agent.files import digest_file, free_space, remove, resolve
from device_agent.host import Host
from device_agent.machine import Machine
from device_agent.probe import probe
from device_agent.protocol import (
    Bench,
    Digest,
    Digests,
    Done,
    Event,
    Facts,
    Failed,
    Hello,
    Measurement,
    Probe,
    Progress,
    ProtocolError,
    Quit,
    Remove,
    Request,
    Space,
    Verify,
    Welcome,
    decode_request,
)
from device_agent.supervise import supervise
from device_agent.watch import Watch


def serve(host: Host, root: str) -> int:
    """Answers requests until there are no more; gives the status to exit with."""
    while True:
        line = host.read_line()
        if line is None:
            return 0
        try:
            request = decode_request(line)
        except ProtocolError as error:
            host.send(Failed("bad-request", str(error)))
            continue
        host.send(_conclude(request, host, root))
        if isinstance(request, Quit):
            return 0


def _conclude(request: Request, host: Host, root: str) -> Event:
    try:
        return answer(request, host, root)
    except Exception as error:  # noqa: BLE001  a failure of one request must not end the agent
        return failure_of(error)


def answer(request: Request, host: Host, root: str) -> Union[Done, Failed]:
    """Sends the events that answer a request, and gives the one that ends the answer.

    Raises:
        HostGone: The host hung up.
        Exception: Whatever went wrong; `failures.failure_of` sorts it.
    """
    if isinstance(request, Hello):
        host.send(Welcome(platform.python_version(), sys.executable, os.getpid(), root))
    elif isinstance(request, Probe):
        host.send(_probe(request, host, root))
    elif isinstance(request, Verify):
        return _verify(request, host, root)
    elif isinstance(request, Bench):
        return _bench(request, host, root)
    elif isinstance(request, Digest):
        host.send(Digests(tuple(digest_file(root, path) for path in request.paths)))
    elif isinstance(request, Space):
        host.send(free_space(root, request.path))
    elif isinstance(request, Remove):
        host.send(remove(root, request.path))
    elif not isinstance(request, Quit):
        raise BadRequest("no answer to {}".format(type(request).__name__))
    return Done()


def _probe(request: Probe, host: Host, root: str) -> Facts:
    if not request.import_runtimes:
        return probe(Machine(), root)  # quick, so it is answered even to a host that has hung up
    host.send(Progress("probe", 0))
    return probe(Machine(), root, True, lambda: host.wait((), 0.0))


def _verify(request: Verify, host: Host, root: str) -> Union[Done, Failed]:
    plan = request.plan._replace(folder=resolve(root, request.plan.folder))
    result = supervise(request._replace(plan=plan), host, host.send)
    if isinstance(result, Failed):
        return result
    host.send(result)
    return Done()


def _bench(request: Bench, host: Host, root: str) -> Union[Done, Failed]:
    plan = request.plan._replace(folder=resolve(root, request.plan.folder))
    with Watch(request.power_sources, Machine()) as watch:
        watch.idle(request.idle_ns, host)
        result = supervise(request._replace(plan=plan), host, host.send)
        if isinstance(result, Measurement):
            result = watch.complete(result, host.send)
    if isinstance(result, Failed):
        return result
    host.send(result)
    return Done()
