"""Flax modules. They know nothing of losses, masks' origin, data or devices."""
