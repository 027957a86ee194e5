"""The algebra of layouts, held to numpy on arrays whose elements are all different."""

from math import prod

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepipe.convert.tflite.layout import Layout, channels_last, moves_nothing, plain


@st.composite
def laid_out(draw):
    """A shape with a layout for it."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)))
    return shape, Layout(tuple(draw(st.permutations(range(len(shape))))))


@st.composite
def reshapes(draw):
    """A laid-out shape and another one of as many elements."""
    shape, layout = draw(laid_out())
    rest, result = prod(shape), []
    while rest > 1:
        size = draw(st.sampled_from([d for d in range(1, rest + 1) if rest % d == 0]))
        result.append(size)
        rest //= size
        if len(result) > 4:
            break
    return shape, layout, (*result, rest)


def numbered(shape):
    return np.arange(prod(shape)).reshape(shape)


@given(case=laid_out(), data=st.data())
def test_transposing_the_value_leaves_the_tensor(case, data):
    shape, layout = case
    perm = tuple(data.draw(st.permutations(range(len(shape)))))
    value = numbered(shape)
    after = layout.transposed(perm).arrange(value.transpose(perm))
    np.testing.assert_array_equal(after, layout.arrange(value))


@settings(max_examples=400)
@given(case=reshapes())
def test_a_reshaped_layout_holds_the_same_elements_in_the_same_order(case):
    shape, layout, result = case
    after = layout.reshaped(shape, result)
    if after is None:
        return
    value = numbered(shape)
    tensor = after.arrange(value.reshape(result))
    assert tensor.shape == after.shape(result)
    np.testing.assert_array_equal(tensor.reshape(-1), layout.arrange(value).reshape(-1))


@settings(max_examples=300)
@given(case=reshapes())
def test_a_reshape_is_found_wherever_there_is_one(case):
    """No layout is refused for which some permutation of the result would do."""
    from itertools import permutations

    shape, layout, result = case
    if layout.reshaped(shape, result) is not None:
        return
    value = numbered(shape)
    lies = layout.arrange(value).reshape(-1)
    for perm in permutations(range(len(result))):
        assert not np.array_equal(value.reshape(result).transpose(perm).reshape(-1), lies)


@given(case=reshapes())
def test_a_gathered_layout_can_be_reshaped(case):
    shape, layout, result = case
    gathered = layout.gathered(shape, result)
    assert sorted(gathered.perm) == list(range(len(shape)))
    assert gathered.reshaped(shape, result) is not None
    if layout.reshaped(shape, result) is not None and not layout.reshaped(shape, result).sizes:
        order, wanted = ([axis for axis in lies.perm if shape[axis] > 1] for lies in (gathered, layout))
        assert order == wanted


@given(case=laid_out(), data=st.data())
def test_dropping_axes(case, data):
    shape, layout = case
    axes = tuple(data.draw(st.sets(st.integers(0, len(shape) - 1), max_size=len(shape))))
    kept = layout.reduced(axes)
    expected = tuple(shape[axis] for axis in layout.perm if axis not in axes)
    assert kept.shape(tuple(size for axis, size in enumerate(shape) if axis not in axes)) == expected


@given(case=laid_out())
def test_axes_follow(case):
    shape, layout = case
    for axis in range(-len(shape), len(shape)):
        assert layout.shape(shape)[layout.axis(axis)] == shape[axis]


@given(case=laid_out())
def test_moving_unit_axes_moves_no_element(case):
    shape, layout = case
    value = numbered(shape)
    same = np.array_equal(value.reshape(-1), value.transpose(layout.perm).reshape(-1))
    assert moves_nothing(shape, layout.perm) == same


def test_flattening_a_map_remembers_the_order():
    layout = channels_last(4).reshaped((1, 2, 3, 4), (1, 24))
    assert layout == Layout((0, 1), (2, 3, 4), (1, 2, 0))
    value = numbered((1, 2, 3, 4))
    np.testing.assert_array_equal(
        layout.arrange(value.reshape(1, 24)), value.transpose(0, 2, 3, 1).reshape(1, 24)
    )


def test_unit_axes_go_where_a_conv_wants_them():
    """A single-channel map in NHWC, reshaped to NCHW, is NHWC already."""
    assert plain(4).reshaped((1, 49, 10, 1), (1, 1, 49, 10)) == channels_last(4)
