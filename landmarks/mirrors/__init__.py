"""Where photos live: in a folder, at a URL, or made from something else; their tables, shards and pixels."""
