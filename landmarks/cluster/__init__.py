"""More than one machine: shards as tasks of a Ray cluster, and a copy of the work folder in an object store."""
