"""The legend of axis letters that every shape, einsum and docstring of the project uses.

    L  layer            B  batch (one example a row)   T  token position
    D  embedding width  F  FFN neuron                  V  vocabulary entry
    N  query head       K  key/value head              H  width of one head
    G  language         W  word (one dictionary entry)

Inside ``kernels/hsic`` two letters have the meaning of the HSIC literature instead: ``N`` counts
the samples (words) and ``n1``, ``n2`` the variables (neurons) of the two sides. A neuron is a
pair (layer, index); its activation is read at the site ``mlp_gate_act`` unless stated otherwise.
"""
