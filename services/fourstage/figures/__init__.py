"""Pictures of finished and running trainings: the paper's figures and the pipeline's timeline."""
