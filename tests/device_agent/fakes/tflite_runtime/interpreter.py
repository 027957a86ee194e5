"""The FAKE interpreter: gives its input back (int8), after misbehaving as the model file says."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np


class Interpreter:
    def __init__(self, model_path, num_threads):
        model = json.loads(Path(model_path).read_text())
        self._act = getattr(self, "_" + model.get("at_load", "nothing"))
        self._act(model)
        self._act = getattr(self, "_" + model.get("at_invoke", "nothing"))
        self._model = model
        self._shape = model["shape"]
        self._input = np.frombuffer(b"", "int8")
        self._runs = 0

    def get_input_details(self):
        return [{"index": 7, "shape": self._shape}]

    def get_output_details(self):
        return [{"index": 9, "shape": self._shape}]

    def allocate_tensors(self):
        pass

    def resize_tensor_input(self, index, shape):
        assert index == 7
        self._shape = shape

    def set_tensor(self, index, array):
        assert index == 7
        assert list(array.shape) == list(self._shape), (array.shape, self._shape)
        self._input = array

    def get_tensor(self, index):
        assert index == 9
        values = bytearray(self._input.tobytes())
        values[0] = (values[0] + self._model.get("add", 0)) % 256
        return np.frombuffer(bytes(values), "int8")

    def invoke(self):
        self._runs += 1
        self._act(self._model)

    def _nothing(self, model):
        pass

    def _sleep(self, model):
        time.sleep(model["seconds"])

    def _print(self, model):
        """Writes to file descriptor 1, as runtimes written in C++ do."""
        os.write(1, b"INFO: noise on standard output\n")
        sys.stdout.write("more noise\n")
        sys.stdout.flush()

    def _record(self, model):
        """Appends the first byte of the input to a file."""
        with Path(model["log"]).open("ab") as file:
            file.write(self._input.tobytes()[:1])

    def _abort(self, model):
        os.write(2, b"fatal: something is rotten\n")
        os.abort()

    def _exit(self, model):
        os._exit(3)

    def _kill(self, model):
        os.kill(os.getpid(), signal.SIGKILL)

    def _allocate(self, model):
        self._hoard = bytearray(model["bytes"])
        for start in range(0, len(self._hoard), 4096):
            self._hoard[start] = 1

    def _old(self, model):
        raise ValueError("Didn't find op for builtin opcode 'CONV_2D' version '8'. Registration failed.")

    def _raise(self, model):
        raise RuntimeError("the interpreter is unhappy")

    def _full(self, model):
        raise OSError(28, "No space left on device", "/tmp/cache")

    def _spawn(self, model):
        """Leaves a process of its own behind, which must not survive the child either."""
        if os.fork() == 0:
            Path(model["pid_file"]).write_text(str(os.getpid()))
            time.sleep(60)
            os._exit(0)
        time.sleep(60)
