"""A FAKE tflite_runtime: its models are JSON files that say what to do instead of computing."""

__version__ = "2.14.0.fake"
