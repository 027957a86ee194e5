"""Walking through networks of several branches and heads."""

import numpy as np
import pytest

from edgepipe.quantize.static import QuantizeStatic

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("outputs", ["(float[n,2,8,8] y)", "(float[n,2,8,8] a, float[n,2,8,8] y)"])
def test_branches_that_only_the_end_reads(build_model, make_context, compute, outputs):
    """Between two linear ops stands one that no linear op depends on."""
    body = "{ c = Conv(x, w)  a = Sigmoid(c)  d = Conv(x, v)  y = Add(a, d) }"
    weights = {"w": normal(2, 3, 1, 1), "v": normal(2, 3, 1, 1)}
    model = build_model(f"net (float[n,3,8,8] x) => {outputs} {body}", **weights)
    samples = normal(16, 3, 8, 8)
    result = QuantizeStatic(rounding="gptq").apply(model, make_context(samples))
    exact, found = (compute(each, samples)[-1] for each in (model, result))
    assert np.square(exact).sum() > 1000 * np.square(exact - found).sum()  # 30 dB
