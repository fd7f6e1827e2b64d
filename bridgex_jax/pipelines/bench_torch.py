"""Capture with torch, as its users have it: plain hooks, nnsight, TransformerLens.

The alternatives that `bridgex bench capture` measures, each where it is installed. All are imported
by name: none is a dependency. Axes: L F W (axes.py); C = chosen neurons of a layer.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from bridgex_jax.data.batching import Batch, Encoded
from bridgex_jax.models.load import Model
from bridgex_jax.models.weights import weight_table

Values = list[Float[np.ndarray, "C W"]]


class TorchWithHooks:
    """The torch implementation with our weights and a hook on every layer's activation function."""

    name: ClassVar[str] = "torch"
    needs: ClassVar[tuple[str, ...]] = ("torch", "transformers")

    def __init__(self, model: Model, neurons: Sequence[Int[np.ndarray, " C"]]):
        self.torch = importlib.import_module("torch")
        transformers = importlib.import_module("transformers")
        config = transformers.LlamaConfig.from_dict(model.config.to_hf())
        self.decoder = transformers.LlamaForCausalLM(config).eval()
        missing, unexpected = self.decoder.load_state_dict(self._weights(model), strict=False)
        assert set(missing) <= {"lm_head.weight"} and not unexpected
        self.neurons = [self.torch.from_numpy(chosen) for chosen in neurons]
        self.activations: list[Any] = []
        self._attach()

    @classmethod
    def is_installed(cls) -> bool:
        """Whether everything that this way needs is there."""
        return all(importlib.util.find_spec(name) for name in cls.needs)

    def _attach(self) -> None:
        for layer in self.decoder.model.layers:
            layer.mlp.act_fn.register_forward_hook(
                lambda module, inputs, output: self.activations.append(output)
            )

    def _weights(self, model: Model) -> dict[str, Any]:
        weights = {}
        for leaf in weight_table(model.config):
            value = np.asarray(functools.reduce(dict.__getitem__, leaf.path, model.params))
            names = leaf.names(model.config.n_layers)
            for name, of_layer in zip(names, value if leaf.stacked else [value], strict=True):
                array = np.array(leaf.write(of_layer), order="C")
                weights[name] = self.torch.from_numpy(array)
        return weights

    def one_at_a_time(self, encoded: Sequence[Encoded]) -> Values:
        """As the released code of the paper does: a forward pass a prompt."""
        values = [np.zeros((len(chosen), len(encoded)), np.float32) for chosen in self.neurons]
        for word, item in enumerate(encoded):
            self._forward(self.decoder, np.array([item.ids]), None)
            first = item.scope.index(True)
            for into, chosen, found in zip(values, self.neurons, self.activations, strict=True):
                into[:, word] = found[0, first:][:, chosen].mean(0).numpy()
        return values

    def batched(self, batches: Iterable[Batch], n_words: int, vocabulary: bool = True) -> Values:
        """As a careful user would: padded batches; without the product with the vocabulary too."""
        decoder = self.decoder if vocabulary else self.decoder.model
        values = [np.zeros((len(chosen), n_words), np.float32) for chosen in self.neurons]
        for batch in batches:
            self._forward(decoder, batch.tokens, batch.mask)
            scope = self.torch.from_numpy(batch.scope)[:, :, None]
            real = batch.index >= 0
            for into, chosen, found in zip(values, self.neurons, self.activations, strict=True):
                mean = (found[:, :, chosen] * scope).sum(1) / scope.sum(1).clamp(min=1)
                into[:, batch.index[real]] = mean.numpy()[real].T
        return values

    def _forward(self, decoder: Any, tokens: np.ndarray, mask: np.ndarray | None) -> None:
        self.activations.clear()
        with self.torch.inference_mode():
            decoder(**self._inputs(tokens, mask))

    def _inputs(self, tokens: np.ndarray, mask: np.ndarray | None) -> dict[str, Any]:
        return {
            "input_ids": self.torch.from_numpy(tokens.astype(np.int64)),
            "attention_mask": None if mask is None else self.torch.from_numpy(mask).long(),
            "use_cache": False,
        }


class Nnsight(TorchWithHooks):
    """The same model, its activations read in a trace of nnsight."""

    name = "nnsight"
    needs = (*TorchWithHooks.needs, "nnsight")

    def _attach(self) -> None:
        self.traced = importlib.import_module("nnsight").NNsight(self.decoder)

    def _forward(self, decoder: Any, tokens: np.ndarray, mask: np.ndarray | None) -> None:
        with self.torch.inference_mode():
            self.activations = self._trace(self._inputs(tokens, mask))

    def _trace(self, inputs: dict[str, Any]) -> list[Any]:
        with self.traced.trace(**inputs):
            saved = list().save()  # type: ignore[attr-defined]  # noqa: C408
            for layer in self.traced.model.layers:
                saved.append(layer.mlp.act_fn.output)
        return saved


class TransformerLens(TorchWithHooks):
    """The same model behind TransformerLens' hooks, which lie before the activation function."""

    name = "TransformerLens"
    needs = (*TorchWithHooks.needs, "transformer_lens")

    def _attach(self) -> None:
        transformers = importlib.import_module("transformers")
        tokenizers = importlib.import_module("tokenizers")
        words = tokenizers.models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>")
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer(words), bos_token="<s>", eos_token="</s>"
        )
        lens = importlib.import_module("transformer_lens.model_bridge")
        with tempfile.TemporaryDirectory() as place:  # it takes configurations from there alone
            self.decoder.config.architectures = ["LlamaForCausalLM"]
            self.decoder.config.save_pretrained(place)
            tokenizer.save_pretrained(place)
            boot = lens.TransformerBridge.boot_transformers
            self.hooked = boot(place, hf_model=self.decoder, device="cpu")
        n_layers = self.decoder.config.num_hidden_layers
        self.hooks = [(f"blocks.{i}.mlp.gate.hook_out", self._keep) for i in range(n_layers)]

    def _keep(self, value: Any, hook: Any) -> None:
        self.activations.append(self.torch.nn.functional.silu(value))

    def _forward(self, decoder: Any, tokens: np.ndarray, mask: np.ndarray | None) -> None:
        self.activations.clear()
        inputs = self._inputs(tokens, mask)
        with self.torch.inference_mode():
            self.hooked.run_with_hooks(
                inputs["input_ids"], attention_mask=inputs["attention_mask"], fwd_hooks=self.hooks
            )
