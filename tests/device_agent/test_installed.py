"""Packages found by the names of their metadata, as pip, Debian and vendors leave them."""

import pytest

from device_agent.installed import find_distribution


@pytest.mark.parametrize(
    ("entry", "names", "expected"),
    [
        ("numpy-2.4.6.dist-info", ("numpy",), ("numpy", "2.4.6")),
        ("numpy-1.13.3.egg-info", ("numpy",), ("numpy", "1.13.3")),
        ("numpy-1.19.5-py3.6.egg-info", ("numpy",), ("numpy", "1.19.5")),
        ("tflite_runtime-2.5.0.post1.dist-info", ("tflite_runtime",), ("tflite-runtime", "2.5.0.post1")),
        ("tflite-runtime-2.14.0.dist-info", ("tflite_runtime",), ("tflite-runtime", "2.14.0")),
        (
            "onnxruntime_gpu-1.18.0.dist-info",
            ("onnxruntime", "onnxruntime_gpu"),
            ("onnxruntime-gpu", "1.18.0"),
        ),
        ("onnxruntime_extensions-0.10.0.dist-info", ("onnxruntime", "onnxruntime_gpu"), ("", "")),
        ("numpy_quaternion-2022.4.3.dist-info", ("numpy",), ("", "")),
        ("numpy", ("numpy",), ("", "")),
    ],
)
def test_distributions(entry, names, expected, tmp_path):
    (tmp_path / entry).mkdir()
    folders = ["/nonexistent", str(tmp_path / "agent.pyz"), str(tmp_path)]
    assert find_distribution(names, folders) == expected


def test_first_folder_wins(tmp_path):
    for folder, version in (("b", "1.0"), ("a", "2.0")):
        (tmp_path / folder / f"numpy-{version}.dist-info").mkdir(parents=True)
    folders = [str(tmp_path / "b"), str(tmp_path / "a")]
    assert find_distribution(("numpy",), folders) == ("numpy", "1.0")
