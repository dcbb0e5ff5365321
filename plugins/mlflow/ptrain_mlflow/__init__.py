"""MLflow for plugin_trainer: a run's settings, metrics and files in an MLflow store."""
