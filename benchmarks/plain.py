"""The plain way to train these models, to measure ours against: a step as one first writes it.

Everything is computed at every position, with einsum and every hook point called; batches come
from a DataLoader, the optimizer is PyTorch's default one, and each step's loss is read back.
Weights have the names and shapes of the project's own models, whose state these load.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from toycircuits.core.transformer import TransformerSettings


class PlainLayerNorm(nn.Module):
    """LayerNorm, written out."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(d_model)), nn.Parameter(torch.zeros(d_model))
        self.hook_scale, self.hook_normalized = HookPoint(), HookPoint()

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        scale = self.hook_scale((x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt())
        return self.hook_normalized(x / scale) * self.w + self.b


class PlainAttention(nn.Module):
    """Attention with einsum, head by head dimension."""

    b_Q: Tensor
    b_K: Tensor
    b_V: Tensor
    allowed: Tensor

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        heads, d_model, d_head = settings.n_heads, settings.d_model, settings.d_head
        for name in "QKV":
            self.register_parameter(f"W_{name}", nn.Parameter(torch.zeros(heads, d_model, d_head)))
            self.register_parameter(f"b_{name}", nn.Parameter(torch.zeros(heads, d_head)))
        self.W_O = nn.Parameter(torch.zeros(heads, d_head, d_model))
        self.b_O = nn.Parameter(torch.zeros(d_model))
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_scores, self.hook_pattern = HookPoint(), HookPoint()
        self.hook_z = HookPoint()
        self.register_buffer("allowed", torch.tensor(settings.allowed), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        project = "b p m, h m d -> b p h d"
        q = self.hook_q(torch.einsum(project, x, self.W_Q) + self.b_Q)
        k = self.hook_k(torch.einsum(project, x, self.W_K) + self.b_K)
        v = self.hook_v(torch.einsum(project, x, self.W_V) + self.b_V)
        scores = torch.einsum("b q h d, b k h d -> b h q k", q, k) / q.shape[-1] ** 0.5
        scores = self.hook_attn_scores(scores.masked_fill(~self.allowed, -torch.inf))
        pattern = self.hook_pattern(scores.softmax(-1))
        z = self.hook_z(torch.einsum("b h q k, b k h d -> b q h d", pattern, v))
        return torch.einsum("b p h d, h d m -> b p m", z, self.W_O) + self.b_O


class PlainMLP(nn.Module):
    """Two-layer MLP."""

    def __init__(self, d_model: int, d_mlp: int, act_fn: str) -> None:
        super().__init__()
        self.W_in, self.b_in = (
            nn.Parameter(torch.zeros(d_model, d_mlp)),
            nn.Parameter(torch.zeros(d_mlp)),
        )
        self.W_out = nn.Parameter(torch.zeros(d_mlp, d_model))
        self.b_out = nn.Parameter(torch.zeros(d_model))
        self.act: Callable[[Tensor], Tensor] = F.relu if act_fn == "relu" else F.gelu
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()

    def forward(self, x: Tensor) -> Tensor:
        pre = self.hook_pre(torch.einsum("b p m, m d -> b p d", x, self.W_in) + self.b_in)
        post = self.hook_post(self.act(pre))
        return torch.einsum("b p d, d m -> b p m", post, self.W_out) + self.b_out


class PlainBlock(nn.Module):
    """Attention, and an MLP where there is one."""

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        norm: Callable[[], nn.Module] = (
            (lambda: PlainLayerNorm(settings.d_model)) if settings.normalization else nn.Identity
        )
        self.ln1, self.attn = norm(), PlainAttention(settings)
        self.hook_resid_pre, self.hook_attn_out = HookPoint(), HookPoint()
        self.hook_resid_mid, self.hook_resid_post = HookPoint(), HookPoint()
        self.hook_mlp_out = HookPoint()
        self.mlp = None
        if settings.d_mlp is not None and settings.act_fn is not None:
            self.ln2 = norm()
            self.mlp = PlainMLP(settings.d_model, settings.d_mlp, settings.act_fn)

    def forward(self, x: Tensor) -> Tensor:
        x = self.hook_resid_pre(x)
        x = x + self.hook_attn_out(self.attn(self.ln1(x)))
        if self.mlp is not None:
            x = self.hook_resid_mid(x)
            x = x + self.hook_mlp_out(self.mlp(self.ln2(x)))
        return self.hook_resid_post(x)


class PlainTransformer(HookedRootModule):
    """The transformer of `toycircuits.core.transformer`, every activation formed and hooked."""

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        self.embed: Any = nn.Module()
        self.pos_embed: Any = nn.Module()
        self.unembed: Any = nn.Module()
        self.embed.W_E = nn.Parameter(torch.zeros(settings.d_vocab, settings.d_model))
        self.pos_embed.W_pos = nn.Parameter(torch.zeros(settings.n_ctx, settings.d_model))
        self.unembed.W_U = nn.Parameter(torch.zeros(settings.d_model, settings.d_vocab_out))
        self.unembed.b_U = nn.Parameter(torch.zeros(settings.d_vocab_out))
        self.hook_embed, self.hook_pos_embed = HookPoint(), HookPoint()
        self.blocks = nn.ModuleList(PlainBlock(settings) for _ in range(settings.n_layers))
        self.ln_final = (
            PlainLayerNorm(settings.d_model) if settings.normalization else nn.Identity()
        )
        self.setup()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.hook_embed(self.embed.W_E[tokens])
        x = x + self.hook_pos_embed(self.pos_embed.W_pos.expand(len(tokens), -1, -1))
        for block in self.blocks:
            x = block(x)
        return (
            torch.einsum("b p m, m v -> b p v", self.ln_final(x), self.unembed.W_U)
            + self.unembed.b_U
        )


class PlainRegression(HookedRootModule):
    """One softmax-attention layer over examples: four `Linear` layers a head."""

    def __init__(self, n_heads: int, d_model: int) -> None:
        super().__init__()
        layers = {name: 1 if name == "o" else d_model for name in "qkvo"}
        self.heads: Any = nn.ModuleList(
            nn.ModuleDict({n: nn.Linear(d_model, out, bias=False) for n, out in layers.items()})
            for _ in range(n_heads)
        )
        self.hook_scores = nn.ModuleList(HookPoint() for _ in range(n_heads))
        self.hook_pattern = nn.ModuleList(HookPoint() for _ in range(n_heads))
        self.setup()

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """Take the weights of an `InContextAttention` of one layer."""
        for h, head in enumerate(self.heads):
            for name, linear in head.items():
                linear.weight.data.copy_(state[f"blocks.0.attn.W_{name.upper()}"][h].T)

    def forward(self, z: Tensor, z_q: Tensor) -> Tensor:
        out = torch.zeros(len(z), 1)
        for h, head in enumerate(self.heads):
            q, k, v = head["q"](z_q), head["k"](z), head["v"](z)
            scores = torch.einsum("b l d, b d -> b l", k, q) / z.shape[-1] ** 0.5
            pattern = self.hook_pattern[h](self.hook_scores[h](scores).softmax(-1))
            out = out + head["o"](torch.einsum("b l, b l d -> b d", pattern, v))
        return out


def loader(rows: Dataset[Any], batch_size: int, drop_last: bool) -> Iterator[Any]:
    """Shuffled batches without end, through a `DataLoader`."""
    while True:
        yield from DataLoader(rows, batch_size, shuffle=True, drop_last=drop_last)
