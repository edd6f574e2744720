"""How the network learns: which photos, in which order, in steps that a stopped run goes on with."""
