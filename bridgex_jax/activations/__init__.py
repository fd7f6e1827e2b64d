"""Activation capture: statistics and probe values that are reduced inside the layer, on device."""
