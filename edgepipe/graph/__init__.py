"""Clean-up of float ONNX graphs: what quantization and the emitters may rely on afterwards.

Passes here change how a graph is written, never what it computes (to about 1e-5 of float32 rounding).
"""
