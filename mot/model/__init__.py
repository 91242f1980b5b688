"""The model: towers by three maps around one joint attention."""
