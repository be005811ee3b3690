"""One page about a run that opens anywhere: read, drawn and written without a network, a script or another package."""
