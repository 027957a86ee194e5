"""A FAKE of the corner of NumPy that the agent's runtimes touch, so that old interpreters can be tested."""

__version__ = "0.0.fake"


class Array:
    def __init__(self, data, shape=None):
        self._data = bytes(data)
        self.shape = shape

    def reshape(self, shape):
        return Array(self._data, tuple(shape))

    def tobytes(self):
        return self._data


def frombuffer(data, dtype):
    assert isinstance(dtype, str)
    return Array(data)
