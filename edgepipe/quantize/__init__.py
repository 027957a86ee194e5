"""Post-training quantization: decided once, written as QDQ ONNX."""
