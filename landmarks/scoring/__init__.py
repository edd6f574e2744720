"""How good a submission is: the published files, rules and measures of the two challenges."""
