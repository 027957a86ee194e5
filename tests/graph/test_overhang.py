"""Average pools in ceil mode, against ONNX Runtime's float kernel before the rewriting."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.graph.simplify import Simplify


@st.composite
def geometries(draw):
    taps = [draw(st.integers(1, 4)) for _ in range(2)]
    return {
        "kernel_shape": taps,
        "strides": [draw(st.integers(1, 4)) for _ in range(2)],
        "pads": [draw(st.integers(0, (k - 1) * draw(st.integers(0, 1)))) for k in taps * 2],
        "size": [draw(st.integers(k, 10)) for k in taps],
    }


def pool(build_model, geometry, opset):
    size = geometry["size"]
    attributes = ", ".join(f"{name}={value}" for name, value in geometry.items() if name != "size")
    return build_model(
        f"""net (float[n,2,{size[0]},{size[1]}] x) => (float[n,2,h,w] y) {{
            r = Relu(x)
            y = AveragePool<{attributes}, ceil_mode=1, count_include_pad=1>(r)
        }}""",
        opset=opset,
    )


def test_averages_and_shapes_stay(build_model, make_context, compute):
    @given(geometry=geometries(), opset=st.sampled_from([13, 17, 19, 22]))
    def check(geometry, opset):
        model = pool(build_model, geometry, opset)
        result = Simplify().apply(model, make_context())
        (old,), (new,) = compute(model), compute(result)
        assert old.shape == new.shape
        np.testing.assert_allclose(new, old, atol=1e-6)

    check()


def test_pads_are_written_only_where_windows_overhang(build_model, make_context, op_types):
    def simplified(size, pads):
        geometry = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [pads] * 4, "size": [size, size]}
        return op_types(Simplify().apply(pool(build_model, geometry, 17), make_context()))

    assert simplified(8, 0) == simplified(7, 0) == ["Relu", "AveragePool"]
    assert simplified(7, 1) == ["Relu", "AveragePool"]  # the last window would begin in the pads
    geometry = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4, "size": [10, 10]}
    padded = Simplify().apply(pool(build_model, geometry, 17), make_context())
    assert op_types(padded) == ["Relu", "Pad", "AveragePool"]
