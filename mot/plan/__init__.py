"""What a configuration will need and reach on accelerators that are not there."""
