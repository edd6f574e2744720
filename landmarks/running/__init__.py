"""How a command runs: its settings, how it starts and ends, files that appear whole or not at all, threads."""
