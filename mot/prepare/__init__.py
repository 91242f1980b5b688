"""From the files that people have to a dataset of records, once and offline."""
