"""A second opinion: a plain transformers forward over stored token ids, in a process of its own.

Started as `python -m factory.teachers.plain_forward FOLDER` by `factory.teachers.reference`. FOLDER holds request.json
and one row-N.npz for each row; answer.json is written there at the end: the figures of each row, or why there are none.
Nothing is shared with the engine or with capture: layers come from `output_hidden_states=True`, logits from the model's
own head. So a mistake in how rows are matched to tokens, or in what a layer's number means, cannot be made twice alike.

What it takes of memory is known before anything is loaded: the trunk runs once over a whole row, the head over chunks.
"""

import inspect
import io
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from factory.errors import one_line, redact
from factory.signals import CANDIDATE_ARRAYS, LOGPROB_ARRAYS, Array, Candidates, Logprobs
from factory.teachers.agreement import PICTURE, Figures, compare_candidates, compare_logprobs, compare_states

SOFT_CAP = "attn_logit_softcapping"  # the one thing that a model may ask for and SDPA leaves out in silence
CHUNK_VALUES = 2**24  # logits held at once; a vocabulary of 152k takes 110 positions at a time
HEADROOM = 1.15  # of the weights: what loading and the allocator take beside them
NORMS = ("norm", "final_layernorm", "ln_f", "final_layer_norm")


class NotChecked(Exception):
    """This model cannot be compared here, and why; no fault of the dataset."""


class PlainModel:
    """A causal language model as transformers loads it, on the GPU with most memory free, or on the CPU."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.source = request
        self.processor: Any = None
        self.layers, self.final_norm = request["layers"], request["final_norm"]
        dtype = getattr(torch, request["dtype"])
        names = {name: request[name] for name in ("revision", "trust_remote_code")}
        config = load_config(request["model"], names, request.get("overrides") or {})
        device, free = choose_device()
        # asked first: a process that the kernel kills for memory tells nobody why, and may take others with it
        weights = count_weights(config, names) * dtype.itemsize
        need, most = HEADROOM * weights + row_bytes(config, dtype, request), request.get("most_gib")
        if most is not None and weights > most * 2**30:
            raise NotChecked(f"its weights take {weights / 2**30:.1f} GiB, more than the {most:g} that are compared")
        if need > free:
            raise NotChecked(f"needs {need / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free on {device}")
        try:
            model = model_class(config).from_pretrained(
                request["model"], config=config, dtype=dtype, attn_implementation=choose_attention(config), **names
            )
            self.model = model.eval().to(device)
        except Exception as error:  # transformers raises many types here, and none is a fault of ours
            raise NotChecked(f"transformers cannot load the model: {one_line(error, 300)}") from error
        if "logits_to_keep" not in inspect.signature(self.model.forward).parameters:
            raise NotChecked(f"{type(self.model).__name__} gives no logits for chosen positions")

    def look(self, pictures: list[Array]) -> dict[str, torch.Tensor]:
        """What the model's own image processor makes of one row's pictures (bytes of PNG), as its forward takes it.

        Raises NotChecked where there is no such processor, or it does not take them.
        """
        from PIL import Image
        from transformers import AutoImageProcessor

        try:
            if self.processor is None:
                names = {name: self.source[name] for name in ("revision", "trust_remote_code")}
                self.processor = AutoImageProcessor.from_pretrained(self.source["model"], **names)
            images = [Image.open(io.BytesIO(picture.tobytes())) for picture in pictures]
            made = self.processor(images=images, return_tensors="pt")
        except Exception as error:  # transformers raises many types here, and none is a fault of ours
            raise NotChecked(f"transformers cannot show the model its pictures: {one_line(error, 300)}") from error
        known = inspect.signature(self.model.base_model.forward).parameters
        given = {name: value for name, value in made.items() if name in known and isinstance(value, torch.Tensor)}
        dtype = self.model.dtype
        return {name: (v.to(dtype) if v.is_floating_point() else v).to(self.model.device) for name, v in given.items()}

    def recompute(
        self,
        ids: Array,
        first: int,
        topk_ids_TK: Array | None,
        pixels: dict[str, torch.Tensor] | None = None,
        candidates: Candidates | None = None,
    ) -> tuple[Logprobs | None, Array | None, Array]:
        """What the model says of `ids`: distributions of those from `first` on, states float32 [N, L, H], and
        log-probabilities [M] of the candidates, which belong to the last ids.

        Log-probabilities are taken at the ids given; None stands for what was not asked for. `pixels`: see `look`.
        """
        ids_1S, output, states_NLH = self._run_trunk(ids, pixels)
        logprobs = None if topk_ids_TK is None else self._logprobs(ids_1S, output, first, topk_ids_TK)
        given_M = np.zeros(0, np.float32) if candidates is None else self._candidates(ids_1S, output, candidates)
        return logprobs, states_NLH, given_M

    def recompute_logits(self, ids: Array) -> tuple[torch.Tensor, Array | None]:
        """Of so few ids that this is no matter, the whole logits [N, V] that predict all but the first, and states."""
        ids_1S, output, states_NLH = self._run_trunk(ids)
        with self._trunk_done(output):
            logits_NV = self.model(ids_1S, use_cache=False).logits[0, :-1]
        return logits_NV.float().cpu(), states_NLH

    def _run_trunk(
        self, ids: Array, pixels: dict[str, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, Any, Array | None]:
        """The ids as a batch of one, the trunk's output, and the states of the layers that are asked for."""
        ids_1S = torch.tensor(ids[None].astype(np.int64), device=self.model.device)
        # the trunk alone: logits of every position at once would be tokens x vocabulary
        with self._before_final_norm() as last:
            output = self.model.base_model(
                ids_1S, output_hidden_states=bool(self.layers), use_cache=False, **(pixels or {})
            )
        if not self.layers:
            return ids_1S, output, None
        # transformers' last entry is after the final norm
        layers = list(output.hidden_states)
        if last:
            layers[-1] = last[0]
        # without the last token's: in the engine it never was an input
        states = torch.stack([layers[layer][0, :-1].float() for layer in self.layers], 1)
        return ids_1S, output, states.cpu().numpy()

    @contextmanager
    def _before_final_norm(self) -> Iterator[list[torch.Tensor]]:
        """Filled with the last block's output before the norm, where the dataset keeps that."""
        kept: list[torch.Tensor] = []
        if self.final_norm or not self.layers:
            yield kept
            return
        trunk = self.model.get_decoder()
        norms = [getattr(trunk, name) for name in NORMS if isinstance(getattr(trunk, name, None), torch.nn.Module)]
        if not norms:
            raise NotChecked(f"no final norm found in {type(trunk).__name__}")
        handle = norms[0].register_forward_pre_hook(lambda module, args: kept.append(args[0].clone()))
        try:
            yield kept
        finally:
            handle.remove()

    def _logprobs(self, ids_1S: torch.Tensor, output: Any, first: int, topk_ids_TK: Array) -> Logprobs:
        # each id is predicted at the position before it
        positions = torch.arange(first - 1, ids_1S.shape[1] - 1, device=ids_1S.device)
        topk = torch.tensor(topk_ids_TK.astype(np.int64), device=ids_1S.device)
        size = max(1, CHUNK_VALUES // self.model.get_output_embeddings().weight.shape[0])
        parts = []
        with self._trunk_done(output):
            for at, ids in zip(positions.split(size), topk.split(size), strict=True):
                logits_CV = self.model(ids_1S, logits_to_keep=at, use_cache=False).logits[0]
                parts.append(reduce_logits(logits_CV.float(), ids_1S[0, at + 1], ids))
        sampled, kept, tail, entropy = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
        return Logprobs(sampled, topk_ids_TK, kept, tail, entropy)

    def _candidates(self, ids_1S: torch.Tensor, output: Any, named: Candidates) -> Array:
        """The log-probability of each candidate at its token's position."""
        size = max(1, CHUNK_VALUES // self.model.get_output_embeddings().weight.shape[0])
        first, end_T = ids_1S.shape[1] - len(named.counts_T), np.cumsum(named.counts_T)
        parts = []
        with self._trunk_done(output):
            for chunk in np.array_split(np.arange(len(end_T)), -(-len(end_T) // size)):
                at = torch.tensor(chunk + first - 1, device=ids_1S.device)
                logits_CV = self.model(ids_1S, logits_to_keep=at, use_cache=False).logits[0].float()
                begin, end = end_T[chunk[0]] - named.counts_T[chunk[0]], end_T[chunk[-1]]
                row_M = torch.tensor(np.repeat(chunk - chunk[0], named.counts_T[chunk]), device=logits_CV.device)
                ids_M = torch.tensor(named.ids_M[begin:end].astype(np.int64), device=logits_CV.device)
                parts.append(torch.log_softmax(logits_CV, -1)[row_M, ids_M].cpu().numpy())
        return np.concatenate(parts)

    @contextmanager
    def _trunk_done(self, output: Any) -> Iterator[None]:
        """Meanwhile the model's own forward is its head alone, with whatever it scales or caps: the trunk has run."""
        # set on the object, over the method of its class, which is there again when it is deleted
        trunk = self.model.base_model
        trunk.forward = lambda *args, **kwargs: output
        try:
            yield
        finally:
            del trunk.forward


def reduce_logits(
    logits_CV: torch.Tensor, sampled_C: torch.Tensor, ids_CK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities of the sampled ids and of the given ones, log of the mass outside those, entropy (nats).

    An id of -1 stands for none.
    """
    logprobs_CV = torch.log_softmax(logits_CV, -1).clamp_min_(-1e30)  # 0 * -inf is not a number
    entropy_C = -(logprobs_CV.exp() * logprobs_CV).sum(-1)
    own_C = logprobs_CV.gather(1, sampled_C[:, None])[:, 0]
    kept_CK = logprobs_CV.gather(1, ids_CK.clamp_min(0)).masked_fill_(ids_CK < 0, -torch.inf)
    # the tail is summed without the kept ids, not as one minus them, which would cancel where the model is sure
    row_N, entry_N = (ids_CK >= 0).nonzero(as_tuple=True)
    logprobs_CV[row_N, ids_CK[row_N, entry_N]] = -torch.inf
    return own_C, kept_CK, logprobs_CV.logsumexp(-1), entropy_C


def choose_attention(config: Any) -> str | None:
    """How transformers is to compute attention: as it chooses itself (None), but for what SDPA would leave out."""
    # sinks and biases are safe: such models do not let SDPA be chosen, or hand it a mask
    return "eager" if getattr(config.get_text_config(), SOFT_CAP, None) else None


def load_config(model: str, names: dict[str, Any], overrides: dict[str, Any]) -> Any:
    """The model's configuration with what the job overrides in it, as vLLM does.

    Raises NotChecked where transformers does not know it or its weights are quantised."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model, **names)
    except Exception as error:  # unknown architecture, no such revision, no network, code that is not trusted
        raise NotChecked(f"transformers cannot read the model's configuration: {one_line(error, 300)}") from error
    override(config, overrides)
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        method = quantised.get("quant_method", "?") if isinstance(quantised, dict) else type(quantised).__name__
        raise NotChecked(f"the model's weights are quantised ({method})")
    return config


def model_class(config: Any) -> Any:
    """The class of transformers' that has a language model's head: of a model that sees, the one with its eyes."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    blind = type(config) in AutoModelForCausalLM._model_mapping
    sees = type(config) in AutoModelForImageTextToText._model_mapping
    return AutoModelForImageTextToText if sees and not blind else AutoModelForCausalLM


def override(config: Any, overrides: dict[str, Any]) -> None:
    """Put values into a configuration, those of a part of it into that part."""
    for name, value in overrides.items():
        part = getattr(config, name, None)
        if isinstance(value, dict) and hasattr(part, "to_dict"):
            override(part, value)
        else:
            setattr(config, name, value)
    if getattr(config, "rope_parameters", None):
        config.standardize_rope_params()


def count_weights(config: Any, names: dict[str, Any]) -> int:
    """Numbers in the model, counted without memory. Raises NotChecked for an architecture that transformers lacks."""
    # tensors on this device have shapes and no memory
    try:
        with torch.device("meta"):
            model = model_class(config).from_config(config, trust_remote_code=names["trust_remote_code"])
    except Exception as error:
        raise NotChecked(f"transformers does not hold this architecture: {one_line(error, 300)}") from error
    return sum(parameter.numel() for parameter in model.parameters())


def row_bytes(config: Any, dtype: torch.dtype, request: dict[str, Any]) -> int:
    """Memory the longest row takes beside the weights: states of every layer, and logits of one chunk with copies."""
    text = config.get_text_config()
    # transformers keeps every layer's states where any are asked for; else a few live at a time
    layers = text.num_hidden_layers + 1 if request["layers"] else 4
    states = request["longest"] * text.hidden_size * dtype.itemsize * (layers + 8)
    # of one layer, in float32 and in the model's type, with what the softmax and the cap make of it
    maps = 4 * 4 * text.num_attention_heads * request["longest"] ** 2 if choose_attention(config) else 0
    return int(states + maps + 6 * 4 * CHUNK_VALUES)


def choose_device() -> tuple[torch.device, float]:
    """The GPU with most memory free, else the CPU; and how many bytes are free there."""
    if torch.cuda.is_available():
        free, index = max((torch.cuda.mem_get_info(i)[0], i) for i in range(torch.cuda.device_count()))
        return torch.device("cuda", index), float(free)
    return torch.device("cpu"), free_memory()


def free_memory() -> float:
    """Bytes that this machine and this control group still have; infinite where nobody tells."""
    free = [float("inf")]
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free.append(1024.0 * int(lines["MemAvailable"].split()[0]))
    # in a container the machine's own figure promises too much
    limit, used = group / "memory.max", group / "memory.current"
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        free.append(float(limit.read_text()) - float(used.read_text()))
    return min(free)


def compare_row(model: PlainModel, row: dict[str, Array]) -> dict[str, Any]:
    """Figures of one row: `logprobs` and, for each kept layer, `layers`. `row` as `reference.Row` lays it out."""
    ids = np.concatenate([row["prompt_ids"], row["completion_ids"]])
    stored = Logprobs(**{name: row[name] for name in LOGPROB_ARRAYS if name in row}) if "topk_TK" in row else None
    first = len(ids) - (0 if stored is None else len(stored.sampled_T))
    pictures = [row[name] for name in sorted(row, key=_picture_number) if name.startswith(PICTURE)]
    pixels = model.look(pictures) if pictures else None
    named = Candidates(*(row[name] for name in CANDIDATE_ARRAYS)) if CANDIDATE_ARRAYS[0] in row else None
    topk_ids_TK = None if stored is None else stored.topk_ids_TK
    again, states_NLH, given_M = model.recompute(ids, first, topk_ids_TK, pixels, named)
    figures: dict[str, Any] = {"logprobs": {}, "layers": {}}
    if stored is not None and again is not None:
        figures["logprobs"] = compare_logprobs(stored, again)
    if named is not None:
        figures["logprobs"] |= compare_candidates(named.logprobs_M, given_M)
    if states_NLH is not None:
        # the upper 16 bits of a float32 are a bfloat16
        kept_NLH = (row["bits_NLH"].astype(np.uint32) << 16).view(np.float32)
        again_NLH = states_NLH[row["positions_N"]] if "positions_N" in row else states_NLH
        figures["layers"] = compare_layers(model.layers, kept_NLH, again_NLH)
    return figures


def _picture_number(name: str) -> int:
    return int(name.removeprefix(PICTURE)) if name.startswith(PICTURE) else -1


def compare_layers(layers: list[int], stored_NLH: Array, again_NLH: Array) -> dict[str, Figures]:
    return {str(layer): compare_states(stored_NLH[:, at], again_NLH[:, at]) for at, layer in enumerate(layers)}


def answer(folder: Path) -> dict[str, Any]:
    """The figures of every row in the folder, or why there are none."""
    import transformers

    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    try:
        model = PlainModel(request)
        rows = []
        for number in range(request["rows"]):
            with np.load(folder / f"row-{number}.npz") as arrays, torch.inference_mode():
                rows.append(compare_row(model, dict(arrays)))
    except NotChecked as reason:
        return {"not_checked": redact(str(reason))}
    except (torch.OutOfMemoryError, MemoryError):
        return {"not_checked": "the memory is not enough for the forward of its longest row"}
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    return {"rows": rows, "device": model.model.device.type, "versions": versions}


def end_with_parent() -> None:
    """Nothing is ever written to our input: it ends when the one that started us does, however that ends."""
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    folder = Path(sys.argv[1])
    (folder / "answer.json").write_text(json.dumps(answer(folder)), encoding="utf-8")


if __name__ == "__main__":
    main()
