"""What every test folder may use: tiny models (each builder returns an `Emission`), OpenSSH's sshd on the
loopback, a look at what still runs. Hypothesis' settings."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from edgepipe.bundle import Port
from edgepipe.convert.emission import Emission
from edgepipe.device.ssh_config import SshOptions
from edgepipe.host import Host

SSHD = Path("/usr/sbin/sshd")

# No deadline: examples share their cores with other workers. On CI the same examples each time, so that a red
# build is red for a reason in the change.
hypothesis.settings.register_profile("edgepipe", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("edgepipe")


@pytest.fixture
def tiny_onnx():
    """Builds a float 1x1 convolution and ReLU: x float32 [batch, 3, 4, 5] to y float32 [batch, 2, 4, 5]."""
    from onnx import TensorProto, helper, numpy_helper

    def build(*, batch, seed=0):
        weight = np.random.default_rng(seed).normal(size=(2, 3, 1, 1)).astype(np.float32)
        shapes = [["n" if batch is None else batch, channels, 4, 5] for channels in (3, 2)]
        graph = helper.make_graph(
            [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])],
            "tiny",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shapes[0])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shapes[1])],
            [numpy_helper.from_array(weight, "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        same = (0, 1, 2, 3)
        return Emission(
            format="onnx",
            precision="float32",
            payload=model.SerializeToString(deterministic=True),
            inputs=(Port(name="x", dtype="float32", shape=(1, 3, 4, 5), permutation=same),),
            outputs=(Port(name="y", dtype="float32", shape=(1, 2, 4, 5), permutation=same),),
            op_counts={"Conv": 1, "Relu": 1},
            needs={"onnxruntime": "1.10"},
        )

    return build


@pytest.fixture
def tiny_tflite():
    """Builds x int8 [batch, 4, 5, 3] to max(x, 0), at step 0.1, of a source in NCHW layout."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def tensor(name, batch):
        made = schema.TensorT()
        made.name, made.type, made.buffer = name, schema.TensorType.INT8, 0
        made.shape, made.shapeSignature = [1, 4, 5, 3], [-1 if batch is None else batch, 4, 5, 3]
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale, made.quantization.zeroPoint = [0.1], [0]
        return made

    def build(*, batch):
        code, op, graph, model = (
            schema.OperatorCodeT(),
            schema.OperatorT(),
            schema.SubGraphT(),
            schema.ModelT(),
        )
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RELU
        code.version = 2
        op.opcodeIndex, op.inputs, op.outputs = 0, [0], [1]
        graph.tensors, graph.operators = [tensor("x", batch), tensor("y", batch)], [op]
        graph.inputs, graph.outputs = [0], [1]
        model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
        model.buffers = [schema.BufferT()]
        builder = flatbuffers.Builder(256)
        builder.Finish(model.Pack(builder), b"TFL3")
        shape, order = (1, 4, 5, 3), (0, 2, 3, 1)
        return Emission(
            format="tflite",
            precision="int8",
            payload=bytes(builder.Output()),
            inputs=(Port(name="x", dtype="int8", shape=shape, permutation=order, scale=0.1),),
            outputs=(Port(name="y", dtype="int8", shape=shape, permutation=order, scale=0.1),),
            op_counts={"RELU": 1},
            needs={"litert": "1.0"},
        )

    return build


@pytest.fixture
def build_model():
    """Builds an ONNX `Model` from its graph in ONNX's text form; constants are given as arrays by name."""
    import onnx
    from onnx import numpy_helper

    from edgepipe.model import onnx_model

    def build(text, opset=17, **constants):
        graph = onnx.parser.parse_graph(text)
        graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
        proto = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8
        )
        onnx.checker.check_model(proto, full_check=True)
        return onnx_model(proto, graph.name)

    return build


@pytest.fixture
def make_context(tmp_path):
    """Makes the `Context` of a pass, for a board with this type of activations."""
    from edgepipe.data import Dataset
    from edgepipe.events import silent
    from edgepipe.model import digest_bytes
    from edgepipe.passes import Context
    from edgepipe.target import Target

    def make(samples=None, *, activation="int8", emit=silent, seed=0):
        target = Target(
            name="board", title="Board", architecture="aarch64", cpu="", cores=1, memory_mb=1, os="",
            python="3.11", runtimes=(), activation=activation, threads=1,
        )  # fmt: skip
        data = None
        if samples is not None:
            data = Dataset(x=samples, y=None, digest=digest_bytes(samples.tobytes()), source="made up")
        return Context(target=target, calibration=data, seed=seed, work=tmp_path, emit=emit)

    return make


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_key(path, *, kind="ed25519", passphrase=""):
    """Makes a key pair by OpenSSH: small, and with its passphrase stretched little, for speed."""
    size = ["-b", "2048"] if kind == "rsa" else []
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, *size, "-a", "1", "-N", passphrase, "-f", path], check=True
    )
    return path


@pytest.fixture
def keygen():
    """`make_key`."""
    return make_key


class OpenSsh:
    """An sshd of this machine's OpenSSH, with its own keys, whose one user's home is `root`."""

    def __init__(self, folder, **settings):
        if not SSHD.exists():
            pytest.skip("needs OpenSSH's server: apt-get install openssh-server")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.root = folder, folder / "home"
        self.root.mkdir()
        self.key = make_key(folder / "user_key")
        self.host_key = make_key(folder / "host_key")
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        self.port = free_port()
        self._settings = settings
        self.write_known_hosts()
        self.start()

    def write_known_hosts(self):
        public = self.host_key.with_name("host_key.pub").read_text()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {public}")

    @property
    def host(self):
        return Host(hostname="127.0.0.1", user=getpass.getuser(), port=self.port)

    @property
    def ssh_options(self):
        return SshOptions(
            config_path=self.folder / "ssh_config",
            known_hosts_path=self.folder / "known_hosts",
            identity_files=(self.key,),
            use_agent=False,
            connect_timeout_s=10,
        )

    def start(self):
        settings = {
            "Port": self.port,
            "ListenAddress": "127.0.0.1",
            "HostKey": self.host_key,
            "AuthorizedKeysFile": self.folder / "authorized_keys",
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "PermitRootLogin": "yes",
            "MaxStartups": "100",
            "SetEnv": f"HOME={self.root}",
            "ForceCommand": 'cd "$HOME" && exec sh -c "$SSH_ORIGINAL_COMMAND"',
            **self._settings,
        }
        config = self.folder / "sshd_config"
        config.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        with (self.folder / "log").open("wb") as log:
            self._server = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", config], stdin=subprocess.DEVNULL, stderr=log
            )
        for _ in range(200):
            with (
                contextlib.suppress(ConnectionRefusedError),
                socket.create_connection(("127.0.0.1", self.port)),
            ):
                return
            time.sleep(0.02)
        pytest.fail("sshd does not start: " + (self.folder / "log").read_text())

    def stop(self):
        self._server.terminate()
        self._server.wait()


@pytest.fixture(scope="session")
def openssh(tmp_path_factory):
    server = OpenSsh(tmp_path_factory.mktemp("sshd"))
    yield server
    server.stop()


@pytest.fixture
def start_openssh(tmp_path):
    """Starts an sshd with settings of its own, stopped after the test."""
    started = []

    def start(**settings):
        started.append(OpenSsh(tmp_path / f"sshd{len(started)}", **settings))
        return started[-1]

    yield start
    for server in started:
        server.stop()


def processes_naming(text):
    """Processes of this machine whose command line or environment holds `text`, this one left out.

    The embedded server's command line names no folder, but it inherits TMPDIR and HOME.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if text.encode() in (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


def eventually(condition, seconds=10):
    """Waits until the condition holds; gives whether it came to that."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def no_process_names():
    """Asserts that within seconds no process names a text any more."""
    return lambda text: eventually(lambda: not processes_naming(text))


_FIRST_STATES = {}


@pytest.fixture(autouse=True)
def _same_draws_in_any_order(request):
    """Each test draws from its module's RNG as if it ran alone, whichever worker runs what before it."""
    rng = getattr(request.module, "RNG", None)
    if isinstance(rng, np.random.Generator):
        rng.bit_generator.state = _FIRST_STATES.setdefault(request.module.__name__, rng.bit_generator.state)
