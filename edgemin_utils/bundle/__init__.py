"""The edge bundle: one folder that classifies text on a CPU with onnxruntime, tokenizers and numpy alone."""
