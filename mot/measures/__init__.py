"""Measures of a checkpoint beyond its loss: functions of parameters, batches and a configuration, and nothing else."""
