"""From text and pictures to ids."""
