"""From a trained run to text, pictures, sound and whole documents."""
