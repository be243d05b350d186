"""The edge bundle: one folder that classifies text on a CPU with onnxruntime, tokenizers and numpy alone.

`sources` finds the model, its rows and what it answers to them; `making` writes the folder; `classify` is the program
that lies in it, and what `edgemin predict` runs. Nothing is imported here, so that predicting needs no torch.
"""
