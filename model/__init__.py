"""The model: a SASRec backbone with a residual mixture of one expert a modality. Torch only."""
