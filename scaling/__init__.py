"""What runs show: reads run directories and nothing else."""
