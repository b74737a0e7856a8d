"""Metrics: pure functions from answers to scores. A value that was not measured is None ("unscored"), never zero."""
