"""The methods that condense, and the selections that they are compared with."""
