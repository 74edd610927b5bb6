"""From files of a modality to the tensors that its tower takes; one module for each modality."""
