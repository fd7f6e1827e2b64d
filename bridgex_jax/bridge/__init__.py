"""From probe activations and neuron sets to the language spectrum, the choice, its significance."""
