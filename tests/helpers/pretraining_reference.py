"""Pretraining's loss written out once more, in float64 and with loops: what gradients are held to.

Of the package only the drawn spans and masks are taken, and where the weights start. The encoder is
transformers' own; heads, Condenser layers, pooling and contrast are formulas of their own.
"""

import math

import torch
import transformers

TRAIN_STREAM = 22


def written_out(objective, *, step, early_layer, norm_epsilon=1e-12):
    """The parts of a step's loss and the gradient of their sum, in the parameters' sorted order.

    For BERT only; ``early_layer`` is the layer whose states the Condenser head reads.
    """
    weights = {
        name: parameter.detach().double().requires_grad_()
        for name, parameter in objective.parameters().items()
    }
    parts = _Parts(objective, weights, early_layer=early_layer, epsilon=norm_epsilon).take(step)
    names = sorted(weights)
    gradients = torch.autograd.grad(
        sum(parts.values()), [weights[name] for name in names], allow_unused=True
    )
    flat = [
        (torch.zeros_like(weights[name]) if gradient is None else gradient).reshape(-1)
        for name, gradient in zip(names, gradients, strict=True)
    ]
    return {name: float(value.detach()) for name, value in parts.items()}, torch.cat(flat)


class _Parts:
    def __init__(self, objective, weights, *, early_layer, epsilon):
        backbone = objective.method.backbone
        config = backbone.model.config
        self.objective, self.weights, self.epsilon = objective, weights, epsilon
        self.early_layer = early_layer
        self.pooling = backbone.pooling
        self.heads = config.num_attention_heads
        plain = transformers.BertConfig(**(config.to_dict() | {"attn_implementation": "eager"}))
        self.model = transformers.BertModel(plain, add_pooling_layer=False).double().eval()
        self.head = {"own": "head.mlm.model.cls.predictions.", "tied": "head.mlm."}[
            objective.heads.mlm.kind
        ]

    def take(self, step):
        documents = self.objective._documents(step, stream=TRAIN_STREAM)
        words = {"mlm": [], "condenser": []}
        spans = []
        for document in documents:
            for text in document.texts:
                early, late = self.states(text.ids)
                pooled = late[0] if self.pooling.pool == "cls" else late.mean(dim=0)
                through = self.condensed(torch.cat([pooled[None], early[1:]]))
                for place, target in zip(text.places, text.targets, strict=True):
                    words["mlm"].append(self.surprise(late[place], target))
                    words["condenser"].append(self.surprise(through[place], target))
                if len(document.texts) == 2:
                    if self.pooling.normalise:
                        pooled = pooled / pooled.norm()
                    spans.append((pooled, self.content(document)))
        return {
            "mlm": torch.stack(words["mlm"]).mean(),
            "condenser": torch.stack(words["condenser"]).mean(),
            "contrastive": self.contrast(spans),
        }

    def content(self, document):
        store = self.objective.reader.documents.store
        return next(p.content for p in map(store.at, range(len(store))) if p.id == document.id)

    def states(self, ids):
        """One text at a time, so that there is no padding."""
        encoder = {n: w for n, w in self.weights.items() if not n.startswith("head.")}
        output = torch.func.functional_call(
            self.model,
            encoder,
            kwargs={"input_ids": torch.tensor([ids]), "output_hidden_states": True},
        )
        return output.hidden_states[self.early_layer][0], output.last_hidden_state[0]

    def surprise(self, state, target):
        """Minus the log probability of a word."""
        own = self.head == "head.mlm.model.cls.predictions."
        dense, norm = ("transform.dense", "transform.LayerNorm") if own else ("dense", "norm")
        epsilon = self.epsilon if own else 1e-5
        made = self.linear(state, f"{self.head}{dense}")
        made = made * 0.5 * (1 + torch.erf(made / math.sqrt(2)))
        made = self.layer_norm(made, f"{self.head}{norm}", epsilon=epsilon)
        table = self.weights["embeddings.word_embeddings.weight"]
        scores = table @ made + self.weights[f"{self.head}bias"]
        return torch.logsumexp(scores, dim=0) - scores[target]

    def condensed(self, states):
        for number in range(self.objective.config.head_layers):
            states = self.condenser_layer(states, f"head.condenser.stack.{number}.")
        return states

    def condenser_layer(self, states, name):
        """A transformer layer with its norms after the sums, head by head."""
        weights = self.weights
        into, bias = weights[f"{name}self_attn.in_proj_weight"], weights[
            f"{name}self_attn.in_proj_bias"
        ]  # fmt: skip
        queries, keys, values = (states @ into.T + bias).chunk(3, dim=-1)
        size = states.shape[-1] // self.heads
        mixed = []
        for head in range(self.heads):
            own = slice(head * size, (head + 1) * size)
            attention = torch.softmax(queries[:, own] @ keys[:, own].T / math.sqrt(size), dim=-1)
            mixed.append(attention @ values[:, own])
        made = self.linear(torch.cat(mixed, dim=-1), f"{name}self_attn.out_proj")
        states = self.layer_norm(states + made, f"{name}norm1", epsilon=1e-5)
        made = self.linear(states, f"{name}linear1")
        made = made * 0.5 * (1 + torch.erf(made / math.sqrt(2)))
        made = self.linear(made, f"{name}linear2")
        return self.layer_norm(states + made, f"{name}norm2", epsilon=1e-5)

    def contrast(self, spans):
        """Each span finds its sibling among all spans but itself and copies of its document."""
        found = []
        for row, (vector, content) in enumerate(spans):
            sibling = row ^ 1
            scores = [
                vector @ other / self.objective.temperature
                for column, (other, its) in enumerate(spans)
                if column == sibling or its != content
            ]
            own = vector @ spans[sibling][0] / self.objective.temperature
            found.append(torch.logsumexp(torch.stack(scores), dim=0) - own)
        return torch.stack(found).mean()

    def linear(self, states, name):
        return states @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def layer_norm(self, states, name, *, epsilon):
        mean = states.mean(dim=-1, keepdim=True)
        spread = ((states - mean) ** 2).mean(dim=-1, keepdim=True)
        made = (states - mean) / torch.sqrt(spread + epsilon)
        return made * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
