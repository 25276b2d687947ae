"""From a trained supernet to verified files: search, extraction, quantization, export."""
