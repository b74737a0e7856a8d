"""Metrics: pure functions from answers to scores. What was not measured is None ("unscored"), never zero."""
