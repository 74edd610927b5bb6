"""Models for other runtimes: ONNX, torch.export, Hugging Face transformers, OpenCLIP."""
