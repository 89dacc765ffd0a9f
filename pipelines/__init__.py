"""The package's jobs and their command line; importing it imports no Beam."""
