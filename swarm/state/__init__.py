"""The state of a stage as bytes: snapshots, transfer to a joiner, export of the whole model."""
