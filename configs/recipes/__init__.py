"""Systems of the literature, a file each: what makes it that system, in the words of the configuration."""
