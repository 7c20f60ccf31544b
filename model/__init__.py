"""The model: a SASRec backbone with a residual mixture of a visual and a semantic expert. Torch only."""
