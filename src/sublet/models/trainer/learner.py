"""The model that learns: torch, transformers and peft, which only this process loads."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sublet.models.replica.recipe import Recipe
from sublet.models.trainer import adapter
from sublet.models.trainer.dataset import IGNORED, Tokens, padded
from sublet.models.trainer.protocol import ADAPTER_FILE
from sublet.models.tuning.job import Method

STATE_FILE: Final = "state.safetensors"
_BASE: Final = "base.gguf"
_MOST_NORM: Final = 1.0  # of a gradient


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """How well a batch was known before it was learnt."""

    loss: float  # of a token that is learnt, in nats
    accuracy: float
    tokens: int  # that are learnt


class Learner:
    def __init__(self, weights: Path, recipe: Recipe, method: Method, *, threads: int) -> None:
        """Load a base model, and lay what is to be learnt on top of it.

        Raises:
            ValueError: its architecture cannot be trained.
        """
        # Nothing is fetched from anywhere, whatever a file names.
        os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        import torch  # noqa: PLC0415 - large: only in this process
        from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - the same
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - the same

        torch.set_num_threads(threads)
        torch.manual_seed(method.seed)
        self._torch: Any = torch
        self._recipe = recipe
        self._method = method
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        with _as_folder(weights) as folder:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=_BASE)
            base: Any = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=_BASE, dtype=torch.float32, trust_remote_code=False
            )
        self._architecture = architecture_of(weights)
        config = LoraConfig(
            r=method.rank, lora_alpha=method.alpha, lora_dropout=0.0, bias="none",
            target_modules=list(adapter.LAYERS), task_type="CAUSAL_LM",
        )  # fmt: skip
        self._config: Any = base.config
        self._model: Any = get_peft_model(base, config).to(self._device)
        self._learnt: dict[str, Any] = {
            name: one for name, one in self._model.named_parameters() if one.requires_grad
        }
        self._optimizer: Any = torch.optim.AdamW(self._learnt.values(), lr=method.learning_rate)

    # ── texts ────────────────────────────────────────────────────────────────────────────

    def render(self, messages: Sequence[dict[str, str]], go_on: bool) -> str:
        """Raises ValueError: the template refuses these messages."""
        from jinja2 import TemplateError  # noqa: PLC0415 - comes with the others

        template = self._recipe.chat_template or None
        try:
            text: str = self.tokenizer.apply_chat_template(
                list(messages), chat_template=template, tokenize=False, add_generation_prompt=go_on
            )
        except TemplateError as error:
            raise ValueError(f"the model's chat template refuses an example: {error}") from error
        return text

    def tokenise(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(found["input_ids"]), [tuple(one) for one in found["offset_mapping"]]

    # ── learning ─────────────────────────────────────────────────────────────────────────

    def learn(self, rows: Sequence[Tokens], *, rate: float) -> Seen:
        """Take one step."""
        torch = self._torch
        self._model.train()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        loss, seen = self._look(rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._learnt.values(), _MOST_NORM)
        self._optimizer.step()
        return seen

    def judge(self, rows: Sequence[Tokens], *, size: int) -> Seen:
        """Say how well all of `rows` are known, without learning from them."""
        self._model.eval()
        loss = right = 0.0
        tokens = 0
        with self._torch.no_grad():
            for start in range(0, len(rows), size):
                _, seen = self._look(rows[start : start + size])
                loss += seen.loss * seen.tokens
                right += seen.accuracy * seen.tokens
                tokens += seen.tokens
        return Seen(loss=loss / tokens, accuracy=right / tokens, tokens=tokens)

    def _look(self, rows: Sequence[Tokens]) -> tuple[Any, Seen]:
        torch = self._torch
        given = {name: torch.tensor(one, device=self._device) for name, one in padded(rows).items()}
        labels = given.pop("labels")[:, 1:]
        logits = self._model(**given, use_cache=False).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED
        )
        learnt = labels != IGNORED
        tokens = int(learnt.sum())
        right = int(((logits.argmax(-1) == labels) & learnt).sum())
        return loss, Seen(loss=float(loss.detach()), accuracy=right / tokens, tokens=tokens)

    # ── what is kept ─────────────────────────────────────────────────────────────────────

    def save(self, folder: Path) -> list[Path]:
        """Write what was learnt, as engines load it, and all that it takes to go on."""
        from safetensors.torch import save_file  # noqa: PLC0415 - as above

        tensors = {name: one.detach().cpu().contiguous() for name, one in self._learnt.items()}
        named = {
            f"{name.removesuffix('.default.weight')}.weight": one.numpy()
            for name, one in tensors.items()
        }
        heads = self._config.num_attention_heads
        adapter.write(
            folder / ADAPTER_FILE, named, architecture=self._architecture,
            alpha=self._method.alpha, heads=heads,
            kv_heads=getattr(self._config, "num_key_value_heads", None) or heads,
        )  # fmt: skip
        moments = {
            f"{name}/{what}": value.detach().cpu().contiguous()
            for name, one in self._learnt.items()
            for what, value in self._optimizer.state.get(one, {}).items()
        }
        save_file(tensors | moments, folder / STATE_FILE)
        return [folder / ADAPTER_FILE, folder / STATE_FILE]

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote."""
        from safetensors.torch import load_file  # noqa: PLC0415 - as above

        found = load_file(folder / STATE_FILE)
        with self._torch.no_grad():
            for name, one in self._learnt.items():
                one.copy_(found[name])
                self._optimizer.state[one] = {
                    what: found[f"{name}/{what}"].to("cpu" if what == "step" else self._device)
                    for what in ("step", "exp_avg", "exp_avg_sq")
                }


def architecture_of(weights: Path) -> str:
    import gguf  # noqa: PLC0415 - as above

    reader: Any = gguf.GGUFReader(weights)
    return str(reader.fields["general.architecture"].contents())


@contextmanager
def _as_folder(weights: Path) -> Iterator[str]:
    """Lend a folder in which a file has the name that transformers is told."""
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".base-") as folder:
        Path(folder, _BASE).symlink_to(weights.absolute())
        yield folder
