"""Where `mot launch` can send a command: a module for each, with a template beside it that a person can change."""
