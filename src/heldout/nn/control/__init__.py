"""Policies and forecasters over sequences of observations."""
