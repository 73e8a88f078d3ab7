"""The lineage on disk: what a run leaves, how it becomes durable, how it is read and verified."""
