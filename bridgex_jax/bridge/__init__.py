"""From probe activations and neuron sets to the bridge: spectrum, choice, significance."""
