"""What ingest does to a log that a source has read: types, labels, histories and roles."""
