"""A page that shows people what a run has found: what its work folder tells, judged, drawn and laid out."""
