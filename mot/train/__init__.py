"""Training: the state, the step, the loop, evaluation, and starts from other runs."""
