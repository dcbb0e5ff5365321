"""From a checked configuration to a run that can be trained."""
