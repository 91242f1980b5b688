"""From text, pictures, sound and pen strokes to ids or vectors, and back."""
