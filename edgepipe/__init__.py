"""edgepipe: from a trained model to a measured INT8 artifact on an edge device."""

__version__ = "0.1.0"
